"""A finished run in miniature: real pictures and clips, invented numbers, scores from the real scorer."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from casa_core.types import Image, Sample, Text
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings
from pipelines.data.generate.moving_shapes import encode_video, frames, make_clip, pick_codec
from pipelines.data.generate.shapes import draw_ground, draw_shape, render
from pipelines.data.store.quarantine import Rejected, write_quarantine
from pipelines.data.store.rows import CLEAN_SCHEMA, Media
from pipelines.data.store.shard_writing import write_index
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.held_out.run import summary, write
from pipelines.evaluate.held_out.scoring import Predictions, boards_of, predictions_of
from pipelines.train.metrics import SCORES
from tests.support.data.rows import row_of
from tests.support.evaluate.engine import answered_by_colour

SIDE, SECONDS, FPS = 64, 4.0, 10
EVALUATE = {"baselines": ["blind"], "batch_size": 8, "max_new_tokens": 8, "frame_tolerance": 1}


TIMES = {
    "corpus-vqa": (0, 6),
    "corpus-live": (0, 14),
    "clean-vqa": (7, 9),
    "clean-live": (15, 8),
    "pack": (24, 11),
    "train": (36, 181),
    "train-blind": (36, 120),
    "evaluate": (218, 33),
}
"""Stage → begin and duration, seconds."""


def write_clean(folder: Path, rows: Iterable[dict[str, Any]], rejected: Iterable[Rejected] = ()) -> None:
    """A clean artifact whose held-out split is ``rows``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    table = pa.Table.from_pylist(rows, schema=CLEAN_SCHEMA)
    with pa.ipc.new_file(folder / f"{HELD_OUT}-00000.arrow", CLEAN_SCHEMA) as writer:
        writer.write_table(table, max_chunksize=4)
    write_quarantine(folder / "quarantine.parquet", rejected)
    shards = [{"file": f"{HELD_OUT}-00000.arrow", "rows": len(rows)}]
    counts = {"quarantined": 0, "bytes": 0, "images": 0, "videos": 0}
    splits = {
        "train": {"records": 0, "rows": 0, "shards": [], **counts},
        HELD_OUT: {"records": len(rows), "rows": len(rows), "shards": shards, **counts},
    }
    card = {"schema": "clean/3", "source": folder.name, "reader": "test", "bytes": 0, "splits": splits}
    (folder / "card.json").write_text(json.dumps(card))


def vqa_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of one shape, asked in turn for its colour, its shape and whether it is a circle."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        shape = draw_shape(rng, SIDE)
        buffer = io.BytesIO()
        PILImage.fromarray(render(SIDE, draw_ground(rng), (shape, (32.0, 32.0)))).save(buffer, "PNG")
        kind, question, answer = [
            ("color", "what color does it have?", shape.color),
            ("shape", "what shape is it?", shape.name),
            ("yes_no", "is a circle shown?", "yes" if shape.name == "circle" else "no"),
        ][number % 3]
        sample = Sample(
            source="vqa",
            sample_id=f"test.parquet/{number}",
            parts=(
                Image(),
                Text(role="user", text=question),
                Text(role="assistant", text=answer, trained=True),
            ),
        )
        media = Media(kind="image", data=buffer.getvalue(), width=SIDE, height=SIDE, sha256="")
        rows.append(row_of(sample, [media], {"question_type": kind}))
    return rows


def live_rows(count: int, folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Clips of moving shapes at two frames a second; ``folder`` is for scratch files."""
    rows = []
    for number in range(count):
        clip = make_clip(random.Random(f"{seed}/{number}"), SECONDS)
        path = folder / f"{number}.mp4"
        encode_video(path, frames(clip, FPS), FPS, pick_codec())
        parts: list[Image | Text] = [Text(role="user", text="Describe it live.")]
        for index in range(int(SECONDS * 2)):
            time = clip.start + index / 2
            words = " ".join(word for begin, _, word in clip.words if time <= begin < time + 0.5)
            parts += [
                Image(role="assistant", timestamp=time),
                Text(role="assistant", text=words, trained=True),
            ]
        sample = Sample(source="live", sample_id=f"videos/test-{number}.mp4", parts=tuple(parts))
        media = Media(kind="video", data=path.read_bytes(), width=SIDE, height=SIDE, sha256="")
        rows.append(row_of(sample, [media], {"category": "shapes"}))
    return rows


def write_training(folder: Path, steps: int, floor: float) -> None:
    """``metrics.jsonl`` and ``scores.json`` of a training that went well."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(floor)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            kind = "video" if step % 4 == 0 else "image"
            settled = floor * (0.6 if kind == "video" else 1.0)
            loss = (
                settled
                + 5.5 * math.exp(-step / (0.12 * steps)) * rng.uniform(0.8, 1.2)
                + rng.uniform(0, settled)
            )
            rate = 1.5e-3 * min(1.0, step / (0.05 * steps), (steps - step) / (0.25 * steps))
            line = {
                "step": step, "kind": kind, "loss": loss, "learning_rate": rate, "grad_norm": 1.0,
                "text_tokens": rng.randint(680, 760), "image_tokens": rng.randint(900, 1020),
                "trained_tokens": 150, "seconds": 0.2, "loader_wait_s": 0.002,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    learned = [
        {"step": at, "scores": {"vqa_accuracy": 0.9 - floor * (1 - at / steps), "live_f1": 0.8 * at / steps}}
        for at in range(steps // 4, steps, steps // 4)
    ]
    (folder / SCORES).write_text(json.dumps(learned))


PACK_CARD = {
    "schema": "pack/3",
    "sequences": 1490, "lower_bound": 1462, "text_tokens": 551_230, "image_tokens": 748_544,
    "budget": {"text": 384, "image": 512},
    "fill": {"text": 0.963, "image": 0.981},
    "by_kind": {
        "image": {"sequences": 1091, "lower_bound": 1063, "fill": {"text": 0.981, "image": 0.702}},
        "video": {"sequences": 399, "lower_bound": 399, "fill": {"text": 0.31, "image": 0.5}},
    },
    "sources": {
        "vqa": {"samples": 11998, "text_tokens": 380_100, "image_tokens": 191_968},
        "live": {"samples": 399, "text_tokens": 171_130, "image_tokens": 102_144},
    },
    "histograms": {
        name: {"edges": [i / 20 for i in range(21)], "counts": [0] * 14 + [1, 2, 4, 9, 60, 1414]}
        for name in ("text", "image")
    },
}  # fmt: skip

REJECTED = (
    Rejected(source="vqa", file="vqa/train-00000-of-00003.parquet", row=17, sample_id="train-00000/17",
             reason="truncated_image", detail="the file ends after 812 of 1,630 bytes"),
    Rejected(source="vqa", file="vqa/train-00000-of-00003.parquet", row=902, sample_id="train-00000/902",
             reason="missing_image", detail="image 0 of 1 has no bytes"),
)  # fmt: skip


def write_evaluation(folder: Path, clean: dict[str, Path]) -> dict[str, Any]:
    """What the model that knows colours and its blind twin say, scored and written. Returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_settings(BenchmarkSettings, EVALUATE)
    sources = {source: HeldOut.of(path, settings) for source, path in clean.items()}
    predictions = predicted(sources)
    boards = boards_of(sources, predictions, settings)
    write(folder, predictions, boards)
    return summary(boards)


def predicted(sources: dict[str, HeldOut]) -> Predictions:
    """What the model that knows colours says, and its blind twin."""
    rows = {"model": answered_by_colour(sources), "blind": answered_by_colour(sources, blind=True)}
    return predictions_of(sources, rows)


def make_run(root: Path, *, questions: int = 60, clips: int = 5, steps: int = 400) -> StageContext:
    """Every artifact of a quickstart-like run under ``root``, and the report stage's context for it."""
    folders = {name: root / name for name in TIMES}
    for folder in (*folders.values(), root / "report"):
        folder.mkdir(parents=True, exist_ok=True)
    write_clean(folders["clean-vqa"], vqa_rows(questions), REJECTED)
    write_clean(folders["clean-live"], live_rows(clips, folders["corpus-live"]))
    (folders["corpus-vqa"] / "README.json").write_text("{}")
    (folders["pack"] / "card.json").write_text(json.dumps(PACK_CARD))
    write_index(folders["pack"], [], np.empty(0, np.uint8))
    write_quarantine(folders["pack"] / "quarantine.parquet", [])
    write_training(folders["train"], steps, 0.08)
    write_training(folders["train-blind"], steps, 0.6)
    headline = write_evaluation(folders["evaluate"], {s: folders[f"clean-{s}"] for s in ("vqa", "live")})
    inputs = {
        "clean-vqa": {"corpus": "corpus-vqa"},
        "clean-live": {"corpus": "corpus-live"},
        "pack": {"vqa": "clean-vqa", "live": "clean-live"},
        "train": {"pack": "pack", "vqa": "clean-vqa", "live": "clean-live"},
        "train-blind": {"pack": "pack", "vqa": "clean-vqa", "live": "clean-live"},
        "evaluate": {"train": "train", "blind": "train-blind", "vqa": "clean-vqa", "live": "clean-live"},
    }
    settings = {
        "corpus-vqa": {"make": {"generator": "easy_vqa", "train_rows": 12000}, "seed": 0},
        "corpus-live": {"make": {"generator": "moving_shapes", "train_clips": 400}, "seed": 0},
        "pack": {"sources": ["vqa", "live"], "seed": 0},
        "train": {"model": {"backbone": "tiny"}, "train": {"steps": steps}, "seed": 0, "images": True},
        "evaluate": {"evaluate": EVALUATE, "sources": ["vqa", "live"]},
    }
    manifests = {
        name: manifest(
            name,
            settings=settings.get(name, {}),
            inputs={role: fingerprint(stage) for role, stage in inputs.get(name, {}).items()},
            summary=headline if name == "evaluate" else {},
            begun=TIMES[name][0],
            seconds=TIMES[name][1],
        )
        for name in folders
    }
    for name, folder in folders.items():
        (folder / "manifest.json").write_text(json.dumps(manifests[name]))
    return StageContext(
        name="report",
        settings={"report": {"gallery": 24, "timelines": 4}, "model_name": "casa-quickstart"},
        placement={},
        inputs=folders,
        output=root / "report",
        manifests=manifests,
    )


def fingerprint(name: str) -> str:
    """An invented one: 32 hexadecimal digits."""
    return f"{random.Random(name).getrandbits(128):032x}"


def manifest(
    name: str,
    *,
    settings: dict[str, Any],
    inputs: dict[str, str],
    summary: dict[str, Any],
    begun: float,
    seconds: float,
) -> dict[str, Any]:
    """A manifest as the run layer writes it."""
    started = datetime(2026, 3, 1, 9, 30, tzinfo=UTC) + timedelta(seconds=begun)
    return {
        "format": 1,
        "fingerprint": fingerprint(name),
        "kind": "train" if name == "train-blind" else name.split("-")[0],
        "what": settings,
        "inputs": inputs,
        "code_version": 1,
        "summary": summary,
        "files": {},
        "provenance": {
            "started": started.isoformat(),
            "seconds": seconds,
            "host": "laptop",
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8", "pyarrow": "26.0"},
        },
    }
