"""FineVision: parquet files of conversations about pictures, ``<subset>/train-*.parquet``.

``images: list<struct<bytes, path>>, texts: list<struct<user, assistant>>, source: string``, and four ratings
per turn (``*_ratings: list<int64>`` with ``*_min: int64``), any of which may be null or absent. Docmatix and
the Cauldron have the same layout without ``source``, where a turn may name its own.
"""

from __future__ import annotations

from typing import Any

from pipelines.data.read.corpora.base import ParquetReader
from pipelines.data.read.corpora.conversation import pictures, placed, turns_from_pairs
from pipelines.data.read.formats.parquet import Row, still_picture
from pipelines.data.read.source.base import BadRecord, Place, RawMedia, Record
from pipelines.data.read.source.subsets import subset_of

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
"""Aspects that each turn is rated for, from 1 to 5."""
_RATING_COLUMNS = tuple(f"{name}_{kind}" for name in RATINGS for kind in ("ratings", "min"))


class FineVisionReader(ParquetReader):
    """Reads FineVision's layout.

    A sample's meta holds ``subset`` and, where known, ``question_type``, ``<name>_ratings`` (per turn) and
    ``<name>_min`` for the four ``RATINGS``.
    """

    needed = ("images", "texts")
    wanted = ("source", *_RATING_COLUMNS)

    def parse(self, place: Place, row: Row) -> Record:
        turns = turns_from_pairs(row["texts"])
        media = _pictures(row["images"] or [])
        return place.record(placed(turns, pictures(len(media))), media, _meta(place.file, row))


def _pictures(images: Any) -> tuple[RawMedia, ...]:
    if not isinstance(images, list):
        raise BadRecord("bad_record", f"images is no list: {type(images).__name__}")
    found = [still_picture(image, number) for number, image in enumerate(images)]
    media = tuple(picture for picture in found if picture is not None)
    if len(media) < len(found):
        raise BadRecord("missing_image", f"image {found.index(None)} of {len(found)} has no bytes")
    return media


def _meta(file: str, row: Row) -> dict[str, Any]:
    """The subset, the kind of question where the subset names one (``easy-vqa/color``), and known ratings."""
    named = (turn.get("source") for turn in row["texts"])
    subset = row.get("source") or next((name for name in named if name), None) or subset_of(file)
    if not isinstance(subset, str):
        raise BadRecord("bad_record", f"the source is no string: {type(subset).__name__}")
    meta: dict[str, Any] = {"subset": subset}
    if "/" in subset:
        meta["question_type"] = subset.rsplit("/", 1)[1]
    return meta | {name: row[name] for name in _RATING_COLUMNS if row.get(name) is not None}
