"""The beginning of a text file: byte-order marks, and encodings that are not read."""

from __future__ import annotations

import codecs
from typing import Any

from pipelines.data.read.source.base import BadRecord

MARK = codecs.BOM_UTF8
"""What Windows writes before a text in UTF-8; no part of it."""
_HEAD = 4


def text_start(file: Any) -> int:
    """How many bytes precede the text of a file, which is left there: 3 for a byte-order mark, otherwise 0.

    Raises:
        BadRecord: ``bad_encoding`` for UTF-16 and UTF-32, with a mark or without.
    """
    file.seek(0)
    head = file.read(_HEAD)
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if marked or b"\0" in head:
        raise BadRecord(
            "bad_encoding", "the file is UTF-16 or UTF-32: convert it (iconv -f UTF-16 -t UTF-8 OLD > NEW)"
        )
    start = len(MARK) if head.startswith(MARK) else 0
    file.seek(start)
    return start
