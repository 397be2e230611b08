"""FineVision: parquet files of conversations about pictures.

``images: list<struct<bytes, path>>, texts: list<struct<user, assistant>>, source: string``, and four ratings
a turn (``*_ratings: list<int64>`` with ``*_min: int64``), any of which may be null or absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.types import Image, Part, Sample, Text
from pipelines.data.files import Files
from pipelines.data.quarantine import Rejected
from pipelines.data.readers.base import RawMedia, Record, Span, sample_id, split_files

IMAGE_MARKER = "<image>"
_RATINGS = ("relevance_min", "image_correspondence_min", "visual_dependency_min", "formatting_min")
_NEEDED = ("images", "texts", "source")


@dataclass(frozen=True, kw_only=True)
class FineVisionReader:
    """Reads FineVision's layout; one span a row group.

    Attributes:
        files: The folder with the parquet files.
        source: The data source's name in the recipe.
    """

    files: Files
    source: str

    def spans(self, split: str) -> list[Span]:
        """One span a row group, from the footers; a file without a readable footer is one bad record."""
        spans: list[Span] = []
        for name in split_files(self.files, split, ".parquet"):
            try:
                with self.files.open(name) as file:
                    metadata = pq.ParquetFile(file).metadata
            except (pa.ArrowException, OSError):
                spans.append(Span(file=name, start=0, stop=1, bytes=0, begin=-1, end=-1))
                continue
            start = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                size = metadata.row_group(group).total_byte_size
                spans.append(
                    Span(file=name, start=start, stop=start + rows, bytes=size, begin=group, end=group + 1)
                )
                start += rows
        return spans

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The rows of one row group; where its pages are broken, each of its rows is rejected."""
        try:
            rows = self._read_group(span)
        except (pa.ArrowException, OSError) as error:
            reason = "unreadable_file" if span.begin < 0 else "unreadable_rows"
            for row in range(span.start, span.stop):
                yield self._reject(span.file, row, reason, f"{type(error).__name__}: {error}")
            return
        for row, columns in enumerate(rows, start=span.start):
            yield self._parse(span.file, row, columns)

    def _read_group(self, span: Span) -> list[dict[str, Any]]:
        with self.files.open(span.file) as file:
            parquet = pq.ParquetFile(file)
            present = set(parquet.schema_arrow.names)
            missing = [name for name in _NEEDED if name not in present]
            if missing:
                raise pa.ArrowInvalid(f"the file has no column {', '.join(missing)}")
            columns = [name for name in (*_NEEDED, *_RATINGS) if name in present]
            return parquet.read_row_group(span.begin, columns=columns).to_pylist()

    def _parse(self, file: str, row: int, columns: dict[str, Any]) -> Record | Rejected:
        texts, images = columns["texts"] or [], columns["images"] or []
        if not texts or any(turn is None or turn["user"] is None or not turn["assistant"] for turn in texts):
            return self._reject(
                file, row, "missing_text", f"{len(texts)} turns, one of them without its text"
            )
        gone = [number for number, image in enumerate(images) if image is None or image["bytes"] is None]
        if gone:
            return self._reject(file, row, "missing_image", f"image {gone[0]} of {len(images)} has no bytes")
        if not images and any(IMAGE_MARKER in turn["user"] for turn in texts):
            return self._reject(
                file, row, "missing_image", f"the text has {IMAGE_MARKER}, the record no image"
            )
        parts: list[Part] = [Image(media=number) for number in range(len(images))]
        for turn in texts:
            question = turn["user"].replace(IMAGE_MARKER, "").strip()
            parts += [
                Text(role="user", text=question),
                Text(role="assistant", text=turn["assistant"], trained=True),
            ]
        return Record(
            file=file,
            row=row,
            sample=Sample(source=self.source, sample_id=sample_id(file, row), parts=tuple(parts)),
            media=tuple(
                RawMedia(kind="image", data=image["bytes"], name=image["path"] or f"image {number}")
                for number, image in enumerate(images)
            ),
            meta=_meta(columns),
        )

    def _reject(self, file: str, row: int, reason: str, detail: str) -> Rejected:
        return Rejected(
            source=self.source,
            file=file,
            row=row,
            sample_id=sample_id(file, row),
            reason=reason,
            detail=detail,
        )


def _meta(columns: dict[str, Any]) -> dict[str, Any]:
    """The subset, the kind of question where the subset names one (``easy-vqa/color``), and known ratings."""
    subset = columns["source"] or ""
    meta: dict[str, Any] = {"subset": subset}
    if "/" in subset:
        meta["question_type"] = subset.rsplit("/", 1)[1]
    return meta | {name: columns[name] for name in _RATINGS if columns.get(name) is not None}
