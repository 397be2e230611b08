"""Windows straight from their definition, one item of a document after another (paper, B.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token stands: its window's name (None outside) and its position inside the window."""

    window: tuple[int, int] | None
    position: int


def naive_windows(outlines: Sequence[Sequence[int]]) -> tuple[list[Place], list[Place]]:
    """Places of all text tokens and of all image tokens, in reading order.

    A picture right after a picture joins its window; a picture after text opens a new one. Positions count
    all
    tokens of the window: first its image tokens, then its text. Text before the first picture stands nowhere.

    Args:
        outlines: Per document, 0 for a token and n > 0 for a picture of n tokens.
    """
    text: list[Place] = []
    image: list[Place] = []
    for number, outline in enumerate(outlines):
        window: tuple[int, int] | None = None
        position = 0
        after_text = True
        for at, tokens in enumerate(outline):
            if tokens == 0:
                text.append(Place(window, position if window else 0))
                position += 1
                after_text = True
                continue
            if after_text:
                window, position = (number, at), 0
            for _ in range(tokens):
                image.append(Place(window, position))
                position += 1
            after_text = False
    return text, image
