"""Pictures of one filled shape on a pale ground, in the look of easy-vqa: same colours, shapes and sizes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ShapeName = Literal["circle", "rectangle", "triangle"]
SHAPES: tuple[ShapeName, ...] = ("circle", "rectangle", "triangle")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}
PALE = (230, 255)
"""Range of each channel of a ground, as in easy-vqa."""

SIZES = (0.19, 0.5)
"""Range of a shape's width as a share of the picture's side."""

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape with its colour's name and its width and height in pixels."""

    name: ShapeName
    color: str
    width: float
    height: float

    @property
    def caption(self) -> str:
        """What a commentator would call it, for example "a red circle"."""
        return f"a {self.color} {self.name}"


def draw_shape(
    rng: random.Random, side: int, others: Sequence[Shape] = (), sizes: tuple[float, float] = SIZES
) -> Shape:
    """A random shape for a square picture of ``side`` pixels, of another colour than all ``others`` and of
    another name than the last of them."""
    color = rng.choice([name for name in COLORS if all(name != other.color for other in others)])
    shape: ShapeName = rng.choice([name for name in SHAPES if not others or name != others[-1].name])
    width = rng.uniform(*sizes) * side
    height = {"circle": width, "triangle": width * 0.87, "rectangle": rng.uniform(*sizes) * side}[shape]
    return Shape(shape, color, width, height)


def draw_ground(rng: random.Random) -> tuple[int, int, int]:
    """A pale colour."""
    return rng.randint(*PALE), rng.randint(*PALE), rng.randint(*PALE)


def render(side: int, ground: tuple[int, int, int], *shown: tuple[Shape, tuple[float, float]]) -> Rgb:
    """Paints each shape with its centre at (x, y) pixels; returns RGB of (side, side, 3)."""
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = ground
    for shape, center in shown:
        _paint(picture, ground, shape, center)
    return picture


def _paint(picture: Rgb, ground: tuple[int, int, int], shape: Shape, center: tuple[float, float]) -> None:
    side = len(picture)
    # Only the box around the shape is painted: most of a picture is ground.
    box = tuple(
        slice(max(0, int(middle - length / 2) - 1), min(side, int(middle + length / 2) + 3))
        for middle, length in ((center[1], shape.height), (center[0], shape.width))
    )
    distance_HW = _distance(shape, _axis(side)[box[1]] - center[0], _axis(side)[box[0], None] - center[1])
    coverage_HW1 = np.clip(0.5 - distance_HW, 0.0, 1.0)[..., None]
    ground_C, color_C = np.asarray(ground, np.float32), np.asarray(COLORS[shape.color], np.float32)
    picture[box] = ground_C + coverage_HW1 * (color_C - ground_C) + 0.5


def _distance(shape: Shape, x_W: NDArray[np.float32], y_H1: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance (pixels, negative inside) of pixel centres, relative to the shape's, to the outline."""
    half_width, half_height = np.float32(shape.width / 2), np.float32(shape.height / 2)
    if shape.name == "circle":
        return np.sqrt(x_W * x_W + y_H1 * y_H1) - half_width
    if shape.name == "rectangle":
        return np.maximum(np.abs(x_W) - half_width, np.abs(y_H1) - half_height)
    # An upright triangle: two slanted edges from the apex, and the base.
    slant = np.hypot(shape.height, half_width)
    edge = (np.abs(x_W) * np.float32(shape.height) - (y_H1 + half_height) * half_width) / np.float32(slant)
    return np.maximum(edge, y_H1 - half_height)


@lru_cache(maxsize=8)
def _axis(side: int) -> NDArray[np.float32]:
    return np.arange(side, dtype=np.float32) + np.float32(0.5)
