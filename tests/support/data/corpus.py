"""Corpora of a few records in exactly the published layouts, oddities included."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.data.generate.easy_vqa import FINEVISION_SCHEMA, RATINGS
from pipelines.data.read import Record
from pipelines.data.read.source.files import Files
from pipelines.data.store.quarantine import Rejected
from tests.support.data.media import encode, scene

PICTURE = encode(Image.fromarray(scene()), "PNG")

UNRATED = {f"{name}_ratings": None for name in RATINGS} | {f"{name}_min": None for name in RATINGS}


def finevision_row(
    images: Sequence[bytes | None] | None = (PICTURE,),
    turns: Sequence[tuple[str | None, str | None]] | None = (("what is it?", "a ramp"),),
    **columns: Any,
) -> dict[str, Any]:
    """A row of FineVision, unrated unless ``columns`` say otherwise."""
    return {
        "images": None
        if images is None
        else [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)],
        "texts": None if turns is None else [{"user": user, "assistant": answer} for user, answer in turns],
        "source": "ramps",
        **UNRATED,
        **columns,
    }


def write_finevision(path: Path, rows: Sequence[dict[str, Any]], row_group_size: int = 1024) -> Path:
    """A parquet file of such rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(list(rows), schema=FINEVISION_SCHEMA), path, row_group_size=row_group_size
    )
    return path


def live_record(
    video: str = "clip.mp4",
    start: float = 0.0,
    end: float = 2.0,
    words: Sequence[tuple[float, float, str]] = ((0.1, 0.3, "hello"),),
    **query: Any,
) -> list[dict[str, Any]]:
    """A record of Live-WhisperX; ``query`` overrides or adds to the text entry."""
    text = {"type": "text", "text": "comment live", "previous": "", "title": "", **query}
    return [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": video, "video_start": start, "video_end": end},
                text,
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text_stream", "text_stream": [list(word) for word in words]}],
        },
    ]


def write_jsonl(
    path: Path, lines: Sequence[Any], *, seeks: bool | Sequence[int] = True, ascii_only: bool = True
) -> Path:
    """A JSONL file; strings are written as they are, anything else as JSON.

    Args:
        path: The file.
        lines: Records.
        seeks: Append the offsets of the lines, counted in characters; or these.
        ascii_only: Escape other characters, as the published file does.
    """
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    offsets, position = [], 0
    for text in texts:
        offsets.append(position)
        position += len(text) + 1
    body = "".join(text + "\n" for text in texts)
    if seeks is not False:
        body += json.dumps(offsets if seeks is True else list(seeks))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")
    return path


def read_all(
    reader_class: Callable[..., Any], folder: Path, split: str = "train", **options: Any
) -> list[Record | Rejected]:
    """Everything a reader finds in a split."""
    reader = reader_class(files=Files(str(folder)), source="corpus", **options)
    found = []
    for span in reader.spans(split):
        results = list(reader.read(span))
        assert len(results) == span.records
        found += results
    return found


def reasons(results: Sequence[Record | Rejected]) -> list[str | None]:
    """Why each record was rejected; None for those that were not."""
    return [result.reason if isinstance(result, Rejected) else None for result in results]
