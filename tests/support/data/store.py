"""Clean and pack artifacts from rows that a test chooses, on any storage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from casa_core.types import Image, Sample, Text
from pipelines.data.pack.sequences import PACK_SCHEMA
from pipelines.data.store.rows import CLEAN_SCHEMA, Media
from pipelines.data.store.shard_writing import CARD, write_batches, write_index, write_json, write_shard
from pipelines.storage.uri import Folder
from tests.support.data.rows import row_of

CHAT = (
    Text(role="system", text="be brief"),
    Image(media=0),
    Image(media=1),
    Text(role="user", text="which is larger? größer?"),
    Text(role="assistant", text="", trained=True),
)
LIVE = (
    Text(role="user", text="say what you see"),
    Image(role="assistant", media=0, timestamp=0.0),
    Text(role="assistant", text="a bird", trained=True),
    Image(role="assistant", media=0, timestamp=0.5),
    Text(role="assistant", text="", trained=True),
)


def media(*contents: bytes, kind="image") -> list[Media]:
    return [Media(kind=kind, data=data, width=4, height=3, sha256=data.hex()) for data in contents]


def clean_row(number: int, contents=(b"one", b"two!"), parts=CHAT):
    sample = Sample(source="s", sample_id=f"a/b/{number}", parts=parts)
    return row_of(sample, media(*contents), {"n": number, "größe": "大"})


def random_media(seed: int, sizes: Sequence[int]) -> list[Media]:
    """Media of random bytes, as pictures."""
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        data = rng.bytes(size)
        digest = hashlib.sha256(data).hexdigest()
        found.append(Media(kind="image", data=data, width=4, height=3, sha256=digest, phash=seed))
    return found


def pack_row(number: int, images: Sequence[tuple[int, int]] = ((0, 0), (0, 1))) -> dict[str, Any]:
    """A packed sequence of one document, whose pictures are (row, media) of source ``s``."""
    sizes = dict.fromkeys(("original_height", "original_width", "height", "width", "tokens"), 4)
    text = [number, *range(10)]
    document = {"source": "s", "row": number, "sample_id": f"a/b/{number}", "part": 0, "occurrence": 0}
    return {
        "input_ids": text,
        "loss_mask": [n % 3 == 0 for n in range(len(text))],
        "document_starts": [0],
        "image_positions": list(range(len(images))),
        "images": [
            {"source": "s", "row": row, "media": media, "timestamp": None, **sizes} for row, media in images
        ],
        "documents": [{**document, "turns": [{"start": 4, "end": 9}]}],
        "text_tokens": len(text),
        "image_tokens": 4 * len(images),
        "kind": "image",
    }


def write_clean(folder: Folder, splits: Mapping[str, Sequence[Sequence[dict[str, Any]]]]) -> None:
    """Writes a clean artifact: rows of each shard of each split."""
    card: dict[str, Any] = {"splits": {}}
    for split, shards in splits.items():
        listed = []
        for number, rows in enumerate(shards):
            name = f"{split}-{number:05d}.arrow"
            write_shard(folder / name, CLEAN_SCHEMA, rows, size_of=media_bytes)
            listed.append({"file": name, "rows": len(rows)})
        card["splits"][split] = {"rows": sum(map(len, shards)), "shards": listed}
    write_json(folder / CARD, card)


def write_pack(folder: Folder, shards: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Writes a pack artifact, all of whose sequences hold pictures: rows of each shard."""
    listed = []
    for number, rows in enumerate(shards):
        name = f"packed-{number:05d}.arrow"
        write_batches(folder / name, PACK_SCHEMA, [pa.RecordBatch.from_pylist(rows, schema=PACK_SCHEMA)])
        listed.append({"file": name, "rows": len(rows)})
    write_index(folder, listed, np.zeros(sum(map(len, shards)), np.uint8))


def media_bytes(row: dict[str, Any]) -> int:
    """Of all media of a row."""
    return sum(len(entry["bytes"] or b"") for entry in row["media"])
