"""Encoded bytes for Pillow to read from, a bounded number of times.

Most of Pillow's readers go through a file's pieces in Python: chunks of a PNG, segments of a JPEG, blocks of
a GIF, the bytes of a PPM's comment. A file of 15 MB with millions of empty ones held an interpreter for 10 s.
"""

from __future__ import annotations

import io

from casa_core.errors import MediaError

_READS = 20_000
_BYTES_PER_READ = 64
"""Programs write larger pieces, on the average: a PNG in chunks of 512 bytes is read once per 131 bytes."""


class BoundedReader(io.BytesIO):
    """A file in memory that can be read some 20,000 times, and once more for every 64 of its bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _READS + len(data) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """As the base class.

        Raises:
            MediaError: ``decompression_bomb``, after too many calls.
        """
        self._left -= 1
        if self._left < 0:
            raise MediaError(
                "decompression_bomb",
                "The image is made of too many small pieces.",
                "To go through all of them would take long.",
                "Save it again with another program.",
            )
        return super().read(size)
