"""JPEG files that lack their end: which of them are still shown, and how.

Every browser shows them, with grey where pixels are missing; a training set must not hold half pictures.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

_END = b"\xff\xd9"
_BEGIN = b"\xff\xd8\xff"
_MISSING_LINES = 1 / 16
_SCAN_MARK = b"\xff\xda"
_SCAN = re.compile(_SCAN_MARK)
_COEFFICIENTS = 64


def without_reserve(data: bytes) -> bytes:
    """A JPEG without the zeros behind its break: programs that reserve a download's size leave them.

    Zeros are valid codes, so that decoders would make up the missing part of the picture without complaint.
    Other files, and those with an end mark, come back as they are.
    """
    if not (data.startswith(_BEGIN) and data.endswith(b"\0")):
        return data
    scan = data.rfind(_SCAN_MARK)
    return data if data.find(_END, max(scan, 0)) >= 0 else data.rstrip(b"\0")


def mended(data: bytes) -> bytes | None:
    """A JPEG that breaks off, with an end mark behind it; ``None`` where too much is missing.

    Up to a sixteenth of its lines may be touched, which is a few bytes where only the end mark is gone; and a
    progressive file must have begun the last of its scans.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if image.info.get("progressive") and not _last_scan_begun(data):
            return None
        allowed = _MISSING_LINES * image.height
    return data + _END if _missing_lines(data) <= allowed else None


def _missing_lines(data: bytes) -> int:
    """Lines from the first on that depends on what would follow: on nothing, or on noise."""
    noise = np.random.default_rng(0).integers(0, 255, len(data), np.uint8).tobytes()  # no marker in it
    shown = []
    for tail in (b"", noise):
        with Image.open(io.BytesIO(data + tail + _END), formats=("JPEG",)) as image:
            shown.append(np.asarray(image).reshape(image.height, -1))
    differing = np.flatnonzero((shown[0] != shown[1]).any(axis=1))
    return len(shown[0]) - int(differing[0]) if len(differing) else 0


def _last_scan_begun(data: bytes) -> bool:
    """Whether every coefficient of every component has its last bit in a scan that has begun.

    A scan's header holds its components, its band of coefficients and the lowest bit that it gives (ITU-T
    T.81, B.2.3).
    """
    missing: dict[int, set[int]] = {}
    for scan in _SCAN.finditer(data):
        header = data[scan.end() + 2 :][:32]
        count = header[0] if header else 0
        if not 1 <= count <= 4 or len(header) < 2 * count + 4:
            return False
        first, last, bits = header[2 * count + 1 : 2 * count + 4]
        for component in header[1 : 2 * count + 1 : 2]:
            left = missing.setdefault(component, set(range(_COEFFICIENTS)))
            if not bits & 15:
                left.difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
