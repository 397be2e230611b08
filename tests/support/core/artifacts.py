"""Clean and pack artifacts of a few random pictures and clips, written without Ray: what training reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, ImageSize, Part, Sample, Text
from pipelines.data.pack.sequences import PACK_SCHEMA, encoded_row
from pipelines.data.store.rows import CLEAN_SCHEMA, Media
from pipelines.data.store.shard_writing import CARD, write_index, write_json, write_shard
from tests.support.core.engine import png
from tests.support.data.media import SIDE, counting_video
from tests.support.data.rows import row_of
from tests.support.naive.packing import packed_row

WORDS = ["red", "green", "blue", "circle", "square", "moves", "on", "is", "it", "a"]
PICTURES = [(16, 48), (32, 32), (48, 48)]
TIMES = (0.0, 0.5, 1.5, 2.5)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Folders as the train stage is given them."""

    pack: Path
    sources: dict[str, Path]


def write_training_data(
    root: Path, *, questions: int = 18, clips: int = 4, text_only: int = 0
) -> TrainingData:
    """Questions in packs of one, two and three, the last ``text_only`` without a picture; clips one a
    sequence."""
    rng = np.random.default_rng(0)
    processor = CasaProcessor(build_tokenizer([" ".join(WORDS)] * 3, 300), max_side=48)
    asked = [_question(number, rng, seen=number < questions - text_only) for number in range(questions)]
    video = counting_video(root / "clip.mp4")
    told = [_clip(number, rng, video) for number in range(clips)]
    sources = {"vqa": root / "vqa", "live": root / "live"}
    _write_clean(sources["vqa"], asked)
    _write_clean(sources["live"], told)
    encoded = [("vqa", _encoded(processor, row, *one)) for row, one in enumerate(asked)]
    packs, start = [], 0
    while start < len(encoded):
        size = 1 + len(packs) % 3
        packs.append(packed_row(encoded[start : start + size], "image"))
        start += size
    videos = [packed_row([("live", _encoded(processor, row, *one))], "video") for row, one in enumerate(told)]
    write_pack(root / "pack", packs, videos)
    processor.save_pretrained(root / "pack" / "tokenizer")
    return TrainingData(root / "pack", sources)


def _words(rng: np.random.Generator, most: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))


def _question(number: int, rng: np.random.Generator, *, seen: bool) -> tuple[Sample, list[Media]]:
    height, width = PICTURES[number % len(PICTURES)]
    parts: tuple[Part, ...] = (
        *((Image(),) if seen else ()),
        Text(role="user", text=_words(rng, 6)),
        Text(role="assistant", text=_words(rng, 4), trained=True),
    )
    sample = Sample(source="vqa", sample_id=f"q{number}", parts=parts)
    return sample, [_media("image", png(number, height, width), height, width)] if seen else []


def _clip(number: int, rng: np.random.Generator, video: bytes) -> tuple[Sample, list[Media]]:
    parts: list[Part] = [Text(role="user", text=_words(rng, 3))]
    for time in TIMES:
        parts.append(Image(role="assistant", timestamp=time))
        parts.append(Text(role="assistant", text=_words(rng, 2) if rng.random() < 0.6 else "", trained=True))
    sample = Sample(source="live", sample_id=f"c{number}", parts=tuple(parts))
    return sample, [_media("video", video, SIDE, SIDE)]


def _media(kind: Any, data: bytes, height: int, width: int) -> Media:
    return Media(kind=kind, data=data, width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def _encoded(processor: CasaProcessor, row: int, sample: Sample, media: list[Media]) -> dict[str, Any]:
    images = sum(isinstance(part, Image) for part in sample.parts)
    sizes: list[ImageSize] = [processor.image_size(media[0].height, media[0].width)] * images if media else []
    return encoded_row(row, sample, processor.encode(sample, sizes))


def _write_clean(folder: Path, samples: list[tuple[Sample, list[Media]]]) -> None:
    folder.mkdir(parents=True)
    rows = [row_of(sample, media, {}) for sample, media in samples]
    write_shard(folder / "train-00000.arrow", CLEAN_SCHEMA, rows)
    shards = [{"file": "train-00000.arrow", "rows": len(rows)}]
    write_json(folder / CARD, {"splits": {"train": {"rows": len(rows), "shards": shards}}})


def write_pack(folder: Path, images: list[dict[str, Any]], videos: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    rows = [*images, *videos]
    write_shard(folder / "packed-00000.arrow", PACK_SCHEMA, rows)
    shards = [{"file": "packed-00000.arrow", "rows": len(rows)}]
    write_index(folder, shards, np.arange(len(rows)) >= len(images))
