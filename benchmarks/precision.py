"""What bf16 and int8 weights change in the answers of a trained model: held-out questions and live clips.

python -m benchmarks.precision --model runs/train/…/model --clean runs/clean/…,runs/clean/…

Every way answers the same questions and captions the same clips, through the evaluation's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import publish, read_options, table
from casa_core.engine.engine import Engine
from pipelines.data.store.readers import CleanReader
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks.base import BenchmarkSettings
from pipelines.evaluate.inference import chunks, predict_chunk

FP32 = "fp32"
WAYS: dict[str, dict[str, Any]] = {
    FP32: {"dtype": torch.float32},
    "fp32, decode step int8": {"dtype": torch.float32, "quantize": "int8"},
    "bf16": {"dtype": torch.bfloat16},
    "bf16, decode step int8": {"dtype": torch.bfloat16, "quantize": "int8"},
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
    readers = {name: CleanReader(Path(name), HELD_OUT) for name in options.clean.split(",")}
    found = {way: _run(options.model, keywords, readers, settings) for way, keywords in WAYS.items()}
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


def _run(
    model: str, keywords: dict[str, Any], readers: dict[str, CleanReader], settings: BenchmarkSettings
) -> dict[str, list[Said]]:
    """All answers of one way, and all frames' words: a frame is right where its words are the true ones."""
    engine = Engine.from_pretrained(model, device="cpu", **keywords)
    said: dict[str, list[Said]] = {}
    for chunk in chunks(readers, settings):
        for row in predict_chunk(engine, "model", chunk, readers[chunk.source], settings):
            if row["frames"]:
                frames = [Said(f["spoken"], f["spoken"] == f["truth"]) for f in row["frames"]]
                said.setdefault("frame of a clip", []).extend(frames)
            else:
                said.setdefault("question", []).append(Said(row["answer"], row["correct"]))
    return said


if __name__ == "__main__":
    main()
