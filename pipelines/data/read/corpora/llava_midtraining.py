"""LLaVA-OneVision-1.5's mid-training corpus: parquet files ``*/*.parquet`` of pictures with a caption.

``id: string`` (may contain "/"), ``image``, ``caption: string``. The corpus has no instruction: each caption
answers the one the recipe gives, or follows its picture directly where that is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.processing.arrangement import Content, arrange
from casa_core.types import Image, Part, Role
from pipelines.data.read.corpora.base import ParquetReader
from pipelines.data.read.formats.parquet import Row, still_picture
from pipelines.data.read.source.base import BadRecord, Place, Record
from pipelines.data.read.source.subsets import subset_of

CAPTION_PROMPT = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class LlavaMidtrainingReader(ParquetReader):
    """Reads the mid-training layout; a sample's meta holds ``subset`` and ``id``.

    Attributes:
        caption_prompt: The user's turn before each caption; empty for none.
    """

    needed = ("image", "caption")
    wanted = ("id",)
    caption_prompt: str = CAPTION_PROMPT

    def parse(self, place: Place, row: Row) -> Record:
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
    asked: list[str | Image] = [Image(media=number) for number in range(count)]
    asked += [prompt] if prompt.strip() else []
    question: list[tuple[Role, Content]] = [("user", asked)] if asked else []
    return arrange([*question, ("assistant", [caption.strip()])])
