"""What bf16 and int8 weights change in the answers of a trained model: held-out questions and live clips.

python -m benchmarks.precision --model runs/train/…/model --clean runs/clean/…,runs/clean/…

Every way answers the same questions and captions the same clips, through the evaluation's own code.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import publish, read_options, table
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.kept.answers import AnswerStore
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all

FP32 = "fp32"
WAYS: dict[str, dict[str, Any]] = {
    FP32: {"dtype": "fp32"},
    "fp32, decode step int8": {"dtype": "fp32", "quantize": "int8"},
    "bf16": {"dtype": "bf16"},
    "bf16, decode step int8": {"dtype": "bf16", "quantize": "int8"},
}


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, or what was said about one frame."""

    text: str
    right: bool | None


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        model=("", "a trained checkpoint's folder"),
        clean=("", "folders of clean artifacts, separated by commas"),
        batch_size=16,
    )
    settings = BenchmarkSettings(
        batch_size=options.batch_size, max_new_tokens=8, frame_tolerance=1, baselines=()
    )
    sources = {name: HeldOut.of(Path(name), settings) for name in options.clean.split(",")}
    own: dict[str, Any] = {"folder": Path(options.model), "digest": "", "slots": options.batch_size}
    models = {way: Model(fingerprint=way, **own, **keywords) for way, keywords in WAYS.items()}
    found = {way: _run(model, sources) for way, model in models.items()}
    rows, summary = [], {}
    for way, kinds in found.items():
        summary[way] = {}
        for kind, said in kinds.items():
            pairs = list(zip(said, found[FP32][kind], strict=True))
            one = {
                "count": len(pairs),
                "as fp32": sum(a.text == b.text for a, b in pairs),
                "right": sum(bool(a.right) for a, _ in pairs),
            }
            summary[way][kind] = one
            rows.append([f"{kind}, {way}", one["count"], one["as fp32"], one["right"]])
    header = ["what, weights", "number", "word for word as fp32", "right"]
    title = "Answers of a trained model by the precision of its weights"
    options.model, options.clean = "a quickstart model", "its held-out questions and clips"
    publish("precision", title, options, {"ways": summary}, table(header, rows))


def _run(model: Model, sources: Mapping[str, HeldOut]) -> dict[str, list[Said]]:
    """All answers of one way, and all frames' words: a frame is right where its words are the true ones."""
    with tempfile.TemporaryDirectory() as store:
        rows = answer_all(model, sources, AnswerStore(Path(store), model.fingerprint))
    said: dict[str, list[Said]] = defaultdict(list)
    for name, source in sources.items():
        for one in source.predictions(row for row in rows if row["benchmark"] == name):
            if one.frames:
                said["frame of a clip"] += [Said(f.spoken, f.spoken == f.truth) for f in one.frames]
            else:
                said["question"].append(Said(one.answer, one.correct))
    return said


if __name__ == "__main__":
    main()
