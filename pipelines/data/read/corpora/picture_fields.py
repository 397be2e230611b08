"""Which fields of a record hold its pictures and its text, and which only look as if they did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.data.read.corpora.videos import VIDEO_SUFFIXES
from pipelines.data.read.source.base import BadRecord

PICTURES = ("image", "images")
FILE_NAME = "file_name"
"""The picture of a record that has none of ``PICTURES``, as in an imagefolder's ``metadata.jsonl``."""
TEXTS = ("messages", "conversations", "texts", "caption", "text")
# fmt: off
IMAGE_SUFFIXES = frozenset((
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm",
    "pnm", "avif", "ico", "tga", "jp2", "j2k", "qoi", "sgi", "pcx",
))
# fmt: on
"""Of the formats that ``casa_core.media.decode`` decodes."""
PICTURE_SUFFIXES = IMAGE_SUFFIXES | {"heic", "heif", "jxl", "svg"}
"""Those, and of formats that it does not decode: the picture is set aside, not overlooked."""

_SUFFIXES = PICTURE_SUFFIXES | {suffix[1:] for suffix in VIDEO_SUFFIXES}
_BASE64 = re.compile(r"[A-Za-z0-9+/]{128}")  # longer than a hash
_NAME = re.compile(
    r"image|img|picture|photo|pixel|video|frames|file|path|url|media|(^|_)(pic|pics|jpe?g|png|webp)($|_)",
    re.IGNORECASE,
)


def listed(row: Mapping[str, Any]) -> list[Any]:
    """The values of a record's picture fields in order: one value is a list of one, nulls in a list stay.

    Raises:
        BadRecord: ``bad_record`` where both fields hold pictures.
    """
    found = []
    for name in PICTURES:
        value = row.get(name)
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"} and not any(value.values()):
            value = None  # how a null of a parquet column of structs may be written
        if value is not None and value != []:
            found.append(value if isinstance(value, list) else [value])
    if len(found) > 1:
        raise BadRecord("bad_record", f"pictures in both {' and '.join(PICTURES)}: use one of them")
    return found[0] if found else [name for name in [row.get(FILE_NAME)] if isinstance(name, str)]


def misnamed(row: Mapping[str, Any], *, by_name: bool = False) -> list[str]:
    """Fields that no reader knows and that seem to hold a picture: by their name and, unless ``by_name``, by
    what they hold (a picture's path or address, or bytes)."""
    known = (*PICTURES, FILE_NAME, *TEXTS, "id", "meta")
    names = [name for name in row if name not in known and _NAME.search(name)]
    return [name for name in names if by_name or _is_picture(row[name])]


def _is_picture(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_is_picture, value.values() if isinstance(value, dict) else value))
    if isinstance(value, str):
        path = value.partition("?")[0]
        suffix = path.rpartition(".")[2].lower()
        return value.startswith("data:image") or suffix in _SUFFIXES or _BASE64.match(value) is not None
    return isinstance(value, bytes)
