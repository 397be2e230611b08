"""Clean artifacts written directly, for what comes after cleaning."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from casa_core.types import Image, Part, Sample, Text
from pipelines.data.store.rows import CLEAN_SCHEMA, Media
from pipelines.data.store.shard_writing import CARD, write_json, write_shard
from tests.support.core.engine import png
from tests.support.data.media import SIDE, counting_video
from tests.support.data.rows import row_of

WORDS = ["red", "green", "blue", "circle", "square", "moves", "on", "is", "it", "a"]


def write_clean(folder: Path, samples: Sequence[tuple[Sample, Sequence[Media]]], shards: int = 2) -> Path:
    """A clean artifact with a train split of some samples."""
    folder.mkdir(parents=True)
    rows = [row_of(sample, media, {}) for sample, media in samples]
    listed = []
    for number in range(shards):
        start, stop = (len(rows) * at // shards for at in (number, number + 1))
        name = f"train-{number:05d}.arrow"
        listed.append({"file": name, "rows": write_shard(folder / name, CLEAN_SCHEMA, rows[start:stop])})
    train = {"records": len(rows), "rows": len(rows), "shards": listed}
    write_json(folder / CARD, {"splits": {"train": train}, "quarantine": {}})
    return folder


def chats(count: int, seed: int = 0, source: str = "chats") -> list[tuple[Sample, list[Media]]]:
    """Conversations of one to six turns about none to three pictures: some with a picture in a later turn,
    some with an answer that is too long for any sequence, some of which no answer is trained."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        media = [picture(*rng.choice([16, 40, 64, 96], 2).tolist()) for _ in range(rng.integers(0, 4))]
        parts: list[Part] = [Image(media=at) for at in range(len(media))]
        late = parts.pop() if parts and rng.random() < 0.1 else None
        trained = bool(rng.random() > 0.05)
        for turn in range(int(rng.integers(1, 7))):
            if turn == 1 and late:
                parts.append(late)
                late = None
            parts.append(Text(role="user", text=_words(rng, 6)))
            long = 120 if rng.random() < 0.01 else 12
            parts.append(Text(role="assistant", text=_words(rng, long), trained=trained))
        parts += [late] if late else []
        found.append((Sample(source=source, sample_id=f"{source}/{number}", parts=tuple(parts)), media))
    return found


def clips(count: int, seed: int = 0, source: str = "clips") -> list[tuple[Sample, list[Media]]]:
    """Live streams of four to ten frames, with a word or two said about each."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        parts: list[Part] = [Text(role="user", text="what moves")]
        for frame in range(int(rng.integers(4, 11))):
            parts.append(Image(role="assistant", timestamp=frame / 2))
            parts.append(Text(role="assistant", text=_words(rng, 2), trained=True))
        found.append((Sample(source=source, sample_id=f"{source}/{number}", parts=tuple(parts)), [clip()]))
    return found


@lru_cache
def clip() -> Media:
    """Five seconds of video."""
    with tempfile.TemporaryDirectory() as folder:
        data = counting_video(Path(folder) / "clip.mp4", frames=20, fps=4)
    return Media(kind="video", data=data, width=SIDE, height=SIDE, sha256="0" * 64)


@lru_cache
def picture(width: int, height: int) -> Media:
    """A picture of which only the size matters."""
    data = png(width, height, width)
    return Media(kind="image", data=data, width=width, height=height, sha256=f"{width:032x}{height:032x}")


def _words(rng: np.random.Generator, most: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))
