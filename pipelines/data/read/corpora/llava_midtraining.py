"""LLaVA-OneVision-1.5's mid-training corpus: parquet files ``*/*.parquet`` of pictures with a caption.

``id: string`` (may contain "/"), ``image``, ``caption: string``. The corpus has no instruction: each caption
answers the one the recipe gives, or follows its picture directly where that is empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from casa_core.types import Image, Part, Text
from pipelines.data.read.formats.parquet import Row, parquet_rows, parquet_spans, still_picture
from pipelines.data.read.source.base import BadRecord, Place, Record, Span, collect, split_files
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.subsets import choose_subsets, subset_of
from pipelines.data.store.quarantine import Rejected

CAPTION_PROMPT = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class LlavaMidtrainingReader:
    """Reads the mid-training layout; one span a row group.

    A sample's id is the record's own, followed by file and row; its meta holds ``subset`` and ``id``.

    Attributes:
        files: The folder with the subsets' folders.
        source: The data source's name in the recipe.
        subsets, exclude_subsets: Names or patterns of the folders to read, and to leave out.
        caption_prompt: The user's turn before each caption; empty for none.
    """

    files: Files
    source: str
    subsets: tuple[str, ...] | None = None
    exclude_subsets: tuple[str, ...] = ()
    caption_prompt: str = CAPTION_PROMPT

    def spans(self, split: str) -> list[Span]:
        """One span a row group, from the footers; a file without a readable footer is one bad record."""
        names = split_files(self.files, split, ".parquet")
        chosen = choose_subsets(self.source, names, self.subsets, self.exclude_subsets)
        return parquet_spans(self.files, chosen)

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The rows of one row group; where its pages are broken, its rows from there on are rejected."""
        rows = parquet_rows(self.files, span, needed=("image", "caption"), wanted=("id",))
        return collect(self.source, span, rows, self._parse, own_id=lambda row: row.get("id"))

    def _parse(self, place: Place, row: Row) -> Record:
        picture = still_picture(row["image"])
        if picture is None:
            raise BadRecord("missing_image", "the record has no picture")
        known = {"id": row["id"]} if row.get("id") is not None else {}
        parts = captioned(self.caption_prompt, row["caption"], count=1)
        return place.record(parts, (picture,), {"subset": subset_of(place.file), **known})


def captioned(prompt: str, caption: object, count: int) -> tuple[Part, ...]:
    """``count`` pictures, the prompt unless it is empty, and the caption as the answer.

    Raises:
        BadRecord: ``missing_text`` for a blank caption, ``bad_record`` where it is no text.
    """
    if caption is not None and not isinstance(caption, str):
        raise BadRecord("bad_record", f"the caption is no string: {type(caption).__name__}")
    if caption is None or not caption.strip():
        raise BadRecord("missing_text", "the record has no caption")
    asked = [Text(role="user", text=prompt)] if prompt else []
    images = [Image(media=number) for number in range(count)]
    return (*images, *asked, Text(role="assistant", text=caption.strip(), trained=True))
