"""Turning stored pixels upright: one rule for EXIF orientations and for the display matrices of videos."""

from __future__ import annotations

from typing import Any, NamedTuple


class Turn(NamedTuple):
    """How stored pixels become upright: rows and columns swapped first, then lines reversed.

    Attributes:
        swap: Rows become columns, so that height and width change places.
        flip_rows: Top and bottom change places, after the swap.
        flip_columns: Left and right change places, after the swap.
    """

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def of(self, pixels: Any) -> Any:
        """An upright view of stored pixels (height, width, …); nothing is copied."""
        turned = pixels.swapaxes(0, 1) if self.swap else pixels
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def stored(self, upright: Any) -> Any:
        """A view of upright pixels in the order they are stored: the inverse of :meth:`of`."""
        turned = upright[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return turned.swapaxes(0, 1) if self.swap else turned

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of upright pixels, from those of stored ones."""
        return (width, height) if self.swap else (height, width)


UPRIGHT = Turn()
_EXIF = {
    2: Turn(flip_columns=True),
    3: Turn(flip_rows=True, flip_columns=True),
    4: Turn(flip_rows=True),
    5: Turn(swap=True),
    6: Turn(swap=True, flip_columns=True),
    7: Turn(swap=True, flip_rows=True, flip_columns=True),
    8: Turn(swap=True, flip_rows=True),
}


def exif_turn(orientation: int) -> Turn:
    """The turn of EXIF's orientation number; unknown numbers count as upright."""
    return _EXIF.get(orientation, UPRIGHT)


def matrix_turn(matrix: tuple[int, ...]) -> Turn:
    """The turn of a display matrix (a, b, u, c, d, v, x, y, w), to the nearest quarter; mirrors included.

    It maps a stored column p and row q to the upright column ``a·p + c·q`` and row ``b·p + d·q``
    (ISO/IEC 14496-12, track header).
    """
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(flip_rows=d < 0, flip_columns=a < 0)
    return Turn(swap=True, flip_rows=b < 0, flip_columns=c < 0)
