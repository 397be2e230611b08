"""Pictures of four digits to be read, written in FineVision's parquet layout.

Each quarter of a picture holds one digit, at a random place and of a random size; no two share a digit or a
colour. Three kinds of question, equally frequent, one per picture:

* ``place``: "which digit is top left?" One digit, by where it is. Guessing is right once in ten.
* ``color``: "which digit is red?" One digit, by its colour, which may be in any quarter. Once in ten.
* ``read``: "read all digits" from top left to bottom right, "3 8 1 0". All four must be right, and for each
  the model must count how many it has read. Once in 5040.

Nothing but the picture tells the answer: digits, colours and places are drawn independently.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casa_core.media.decode import encode_png
from pipelines.data.generate.easy_vqa import draw_ratings, write_finevision
from pipelines.data.generate.shapes import Rgb, draw_ground

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 64
"""Pixels of the square picture."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
"""The quarters in reading order."""
COLORS = {
    "red": (215, 0, 0),
    "green": (0, 150, 0),
    "blue": (0, 0, 235),
    "black": (0, 0, 0),
    "orange": (245, 140, 0),
    "purple": (150, 0, 190),
}
KINDS = ("place", "color", "read")
HEIGHTS = (14, 24)
"""Range of a digit's height, pixels; its width is five sevenths of it."""

_ROWS = {
    "0": "01110 10001 10001 10001 10001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
GLYPHS = {digit: np.array([[*map(int, row)] for row in rows.split()], bool) for digit, rows in _ROWS.items()}
"""Digit → (7, 5), true where there is ink."""


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of a picture: its upper left corner and height in pixels."""

    digit: str
    color: str
    x: int
    y: int
    height: int

    @property
    def width(self) -> int:
        """Pixels."""
        return self.height * 5 // 7


def write_reading(
    output: Path,
    *,
    seed: int,
    train_rows: int,
    test_rows: int,
    progress: Callable[[float, float, str], None] = lambda done, total, message: None,
) -> dict[str, list[str]]:
    """Writes ``reading/{train,test}-NNNNN-of-NNNNN.parquet`` under ``output``.

    Args:
        seed: Training and held-out pictures come from two streams of it.
        train_rows: Pictures to train on, each with one question; a multiple of 3.
        test_rows: Held-out pictures, likewise.
        progress: Called as ``(done, total, message)``.

    Returns:
        The files of each split, relative to ``output``.
    """
    files: dict[str, list[str]] = {}
    done = 0
    for split, count in (("train", train_rows), ("test", test_rows)):
        files[split] = write_finevision(output, "reading", split, list(_rows(split, count, seed)))
        done += count
        progress(done, train_rows + test_rows, f"reading {split}")
    return files


def _rows(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        rng = random.Random(f"reading/{split}/{seed}/{number}")
        digits = draw_digits(rng)
        kind = KINDS[number % len(KINDS)]
        question, answer = ask(kind, digits, rng)
        yield {
            "images": [
                {"bytes": encode_png(paint(digits, draw_ground(rng))), "path": f"{split}/{number}.png"}
            ],
            "texts": [{"user": question, "assistant": answer}],
            "source": f"reading/{kind}",
            **draw_ratings(rng),
        }


def draw_digits(rng: random.Random) -> tuple[Digit, ...]:
    """Four different digits of different colours, one in each quarter, in reading order."""
    half = SIDE // 2
    drawn = []
    names = zip(rng.sample(sorted(GLYPHS), 4), rng.sample(sorted(COLORS), 4), strict=True)
    for quarter, (digit, color) in enumerate(names):
        height = rng.randint(*HEIGHTS)
        left, top = half * (quarter % 2), half * (quarter // 2)
        x = left + rng.randint(1, half - 1 - height * 5 // 7)
        drawn.append(Digit(digit, color, x, top + rng.randint(1, half - 1 - height), height))
    return tuple(drawn)


def ask(kind: str, digits: tuple[Digit, ...], rng: random.Random) -> tuple[str, str]:
    """A question of that kind about the picture, and its answer."""
    if kind == "read":
        return "read all digits", " ".join(digit.digit for digit in digits)
    quarter = rng.randrange(4)
    asked = PLACES[quarter] if kind == "place" else digits[quarter].color
    return f"which digit is {asked}?", digits[quarter].digit


def paint(digits: tuple[Digit, ...], ground: tuple[int, int, int]) -> Rgb:
    """The picture, (64, 64, 3): each digit's bitmap stretched to its size."""
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = ground
    for digit in digits:
        rows = np.arange(digit.height) * 7 // digit.height
        cols = np.arange(digit.width) * 5 // digit.width
        box = picture[digit.y : digit.y + digit.height, digit.x : digit.x + digit.width]
        box[GLYPHS[digit.digit][rows][:, cols]] = COLORS[digit.color]
    return picture
