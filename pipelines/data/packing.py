"""Which samples share a sequence: packing under two budgets, in one pass and bounded memory.

Samples are gathered in windows; within a window the largest come first, and each goes to the open sequence
that it leaves with the least room (best fit). Room in the two budgets is weighed by how scarce each has been.
Only ``OPEN`` sequences are open at a time: where none has room and all are taken, the fullest is closed. The
outcome depends on the order and sizes of the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 4096
"""Samples sorted together: the farthest that a sample travels from its neighbours."""
OPEN = 128
"""Sequences open at a time."""

_BLOCK = 8
_BLOCKS_PER_SHUFFLE = 32


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that a sequence holds at most, of text and of images."""

    text: int
    image: int

    def admits(self, text: int, image: int) -> bool:
        """Whether a sample fits into an empty sequence."""
        return text <= self.text and image <= self.image


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to pack: its number in the stream and its tokens."""

    number: int
    text: int
    image: int


def pack(items: Iterable[Item], budget: Budget) -> Iterator[list[int]]:
    """Packs a stream of samples.

    Args:
        items: In reading order; each must fit into an empty sequence.
        budget: Of each sequence.

    Yields:
        The sample numbers of one sequence, ascending, as soon as it is closed.
    """
    bins = _Bins(budget)
    window: list[Item] = []
    for item in items:
        window.append(item)
        if len(window) == WINDOW:
            yield from _place_all(window, bins, budget)
            window = []
    yield from _place_all(window, bins, budget)
    yield from bins.close_all()


def lower_bound(text_tokens: int, image_tokens: int, budget: Budget) -> int:
    """No packing needs fewer sequences than this: tokens divided by budget, the larger of the two."""
    return max(-(-text_tokens // budget.text), -(-image_tokens // budget.image))


def interleave(sizes: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merges streams in proportion to their sizes, each in its own order.

    Returns:
        For each element of the merged stream, which stream it comes from and its number there.
    """
    stream = np.repeat(np.arange(len(sizes)), sizes)
    number = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes] or [np.empty(0)])
    order = np.lexsort((stream, place))
    return stream[order].astype(np.int64), number[order].astype(np.int64)


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation that keeps reads fairly sequential.

    Runs of 8 neighbours are dealt out in random order, and their members shuffled within 32 runs at a time: a
    reader that fetches ahead by 256 sequences touches 32 places in the clean artifacts, not 256.
    """
    rng = np.random.default_rng([seed, count])
    starts = rng.permutation(np.arange(0, count, _BLOCK))
    order = np.concatenate(
        [np.arange(start, min(start + _BLOCK, count)) for start in starts] or [np.empty(0, np.int64)]
    )
    reach = _BLOCK * _BLOCKS_PER_SHUFFLE
    for start in range(0, count, reach):
        order[start : start + reach] = rng.permutation(order[start : start + reach])
    return order.astype(np.int64)


class _Bins:
    """The open sequences: what room each has left, and which samples it holds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._text_left = np.zeros(OPEN, np.int64)
        self._image_left = np.zeros(OPEN, np.int64)
        self._members: list[list[int]] = [[] for _ in range(OPEN)]
        self._open = np.zeros(OPEN, bool)
        self._seen_text = 0.0
        self._seen_image = 0.0

    def place(self, item: Item) -> Iterator[list[int]]:
        """Puts a sample where it fits best; yields a sequence that had to be closed, or is full."""
        self._seen_text += item.text / self._budget.text
        self._seen_image += item.image / self._budget.image
        text_after, image_after = self._text_left - item.text, self._image_left - item.image
        fits = self._open & (text_after >= 0) & (image_after >= 0)
        if fits.any():
            room = np.where(fits, self._room(text_after, image_after), np.inf)
            place = int(room.argmin())
        else:
            place = int(self._open.argmin())
            if self._open[place]:
                place = int(self._room(self._text_left, self._image_left).argmin())
                yield self._close(place)
            self._open[place] = True
            self._text_left[place], self._image_left[place] = self._budget.text, self._budget.image
        self._text_left[place] -= item.text
        self._image_left[place] -= item.image
        self._members[place].append(item.number)
        if self._text_left[place] == 0:  # every sample has text, so nothing more can fit
            yield self._close(place)

    def close_all(self) -> Iterator[list[int]]:
        """The sequences still open, oldest sample first."""
        rest = [place for place in range(OPEN) if self._open[place]]
        for place in sorted(rest, key=lambda place: min(self._members[place])):
            yield self._close(place)

    def _room(self, text_left: NDArray[np.int64], image_left: NDArray[np.int64]) -> NDArray[np.float64]:
        """Unused shares of the two budgets, squared and weighed by the budget's scarcity so far."""
        text, image = text_left / self._budget.text, image_left / self._budget.image
        return self._seen_text * text * text + self._seen_image * image * image

    def _close(self, place: int) -> list[int]:
        members, self._members[place] = self._members[place], []
        self._open[place] = False
        return sorted(members)


def _place_all(window: list[Item], bins: _Bins, budget: Budget) -> Iterator[list[int]]:
    def size(item: Item) -> float:
        return max(item.text / budget.text, item.image / budget.image)

    for item in sorted(window, key=size, reverse=True):  # stable: equal sizes keep their order
        assert budget.admits(item.text, item.image), "what exceeds a budget is quarantined before"
        yield from bins.place(item)
