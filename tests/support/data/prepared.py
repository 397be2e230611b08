"""A small store of clean and pack artifacts, made without Ray: what data cards and ``casa data`` show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from casa_core.types import Image, Sample, Text
from pipelines.dag import artifact
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.pack import run as pack
from pipelines.data.store.shard_pipeline import run_here
from pipelines.recipe.pack import Mixture, Pack, VideoBudget
from tests.support.data.clean import chats, clips, picture, write_clean
from tests.support.data.corpus import finevision_row, write_finevision

HOSTILE = "<script>alert('x')</script> & <b>bold</b>"
PACK: dict[str, Any] = {
    "sources": ["chats", "clips"],
    "tokenizer": {"train_bpe": {"vocab_size": 300}},
    "template": "casa-1",
    "backbone": "tiny",
    "image_placement": "window_start",
    **Pack(
        text_tokens=80,
        image_tokens=36,
        max_side=64,
        video=VideoBudget(text_tokens=80, image_tokens=160),
        mixture=Mixture(weights={"chats": 3.0, "clips": 1.0}),
    ).model_dump(mode="json"),
    "filters": {"text_length": {"min_characters": 6, "max_characters": None}, "aspect_ratio": {"max": 5.0}},
    "max_failures": 0.5,
    "seed": 0,
}


def make_store(root: Path) -> dict[str, Path]:
    """A store with clean artifacts ``chats`` and ``clips``, and a pack artifact of both.

    Returns:
        Folder of each artifact, by ``chats``, ``clips`` and ``pack``.
    """
    said = (Text(role="user", text=HOSTILE), Text(role="assistant", text=HOSTILE, trained=True))
    hostile = Sample(source="chats", sample_id=HOSTILE, parts=(Image(media=0), *said))
    own = [(hostile, [picture(40, 64)]), *chats(180)]
    folders = {
        "chats": write_clean(root / "clean" / "c1", own),
        "clips": write_clean(root / "clean" / "c2", clips(8)),
    }
    output = root / "pack" / "p1"
    output.mkdir(parents=True)
    pack.pack_sources(
        StageContext(name="pack", settings=PACK, placement={}, inputs=dict(folders), output=output),
        run_here,
    )
    for name, fingerprint in (("chats", "c1"), ("clips", "c2")):
        _commit(folders[name], "clean", fingerprint, {}, {})
    _commit(output, "pack", "p1", PACK, {"chats": "c1", "clips": "c2"})
    return {**folders, "pack": output}


def run_clean(root: Path, output: Path, max_failures: float = 0.5) -> dict[str, Any]:
    """Cleans a FineVision corpus without Ray; returns the stage's settings."""
    what = {"source": "photos", "reader": "finevision", "path": str(root), "max_failures": max_failures}
    output.mkdir(parents=True)
    context = StageContext(name="clean-photos", settings=what, placement={}, output=output)
    clean.clean_source(context, run_here)
    _commit(output, "clean", "c", what, {})
    return what


def write_photos(root: Path, count: int = 60) -> Path:
    """A FineVision corpus of pictures of many sizes and colours; every twentieth is cut short."""
    rows = []
    for number in range(count):
        width, height = 40 + 8 * (number % 9), 32 + 16 * (number % 5)
        buffer = io.BytesIO()
        colour = (number * 4 % 256, 128, 255 - number * 4 % 256)
        PILImage.new("RGB", (width, height), colour).save(buffer, "PNG")
        data = buffer.getvalue()
        turns = [
            (f"question {number} {turn}?", "an answer of some words " * (1 + number % 4))
            for turn in range(1 + number % 3)
        ]
        rows.append(finevision_row([data[:60] if number % 20 == 19 else data], turns))
    return write_finevision(root / "photos" / "train-00000-of-00001.parquet", rows, row_group_size=16)


def _commit(
    folder: Path, kind: str, fingerprint: str, settings: dict[str, Any], inputs: dict[str, str]
) -> None:
    identity = {"kind": kind, "fingerprint": fingerprint, "what": settings, "inputs": inputs}
    location = {name: settings[name] for name in ("path",) if name in settings}
    artifact.commit(folder, {**identity, "location": location}, {}, {})
