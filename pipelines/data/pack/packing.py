"""Which samples share a sequence: packing under two budgets, in one pass and bounded memory.

Samples wait in a pool of ``POOL``; ``fitting.py`` makes sequences of those that suit each other, and the
stream's next samples take their places. Every sequence holds the oldest sample that waits, and a stream that
is ``REACH`` ahead of it stops, so the samples of a sequence are neighbours: fewer than ``REACH`` apart. The
outcome depends on the order and sizes of the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.data.pack.fitting import Fitting

POOL = 4096
"""Samples that wait at most."""
REACH = 2 * POOL
"""Samples of one sequence lie fewer than this many places apart in the stream."""
ROUND = POOL // 4
"""Samples packed before the pool is filled up again."""
MEMORY = 1 << 17
"""Samples of the past that the proportion of text to images is taken from, besides the pool."""

_BLOCK = 8
_BLOCKS_PER_SHUFFLE = 32


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that a sequence holds at most, of text and of images."""

    text: int
    image: int


class Packer:
    """Packs a stream of samples, fed in pieces of any size; where it is cut makes no difference.

    Samples are numbered from 0 in the order they are fed. Each must fit into an empty sequence.

    Args:
        budget: Of each sequence.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._number_P = np.empty(POOL, np.int64)
        self._text_P = np.empty(POOL, np.int64)
        self._image_P = np.empty(POOL, np.int64)
        self._waiting = 0
        self._fresh = 0  # of those waiting, the last so many came since the last round
        self._next = 0
        self._past = _Past()
        self._busy = False

    def feed(self, text_N: NDArray[np.integer], image_N: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
        """Takes the stream's next samples.

        Args:
            text_N, image_N: Their tokens.

        Yields:
            The numbers of each sequence's samples, ascending, as soon as it is closed. The samples are taken
            while this runs: it must run to its end before the next call.
        """
        assert text_N.shape == image_N.shape, "a sample has tokens of text and of images"
        assert text_N.max(initial=0) <= self._budget.text, "what exceeds a budget is quarantined before"
        assert image_N.max(initial=0) <= self._budget.image, "what exceeds a budget is quarantined before"
        assert min(text_N.min(initial=0), image_N.min(initial=0)) >= 0, "a sample has no fewer than 0 tokens"
        assert not self._busy, "the last feed is still running"
        self._busy = True
        taken = 0
        while True:
            count = min(self._room(), len(text_N) - taken)
            self._take_in(text_N[taken : taken + count], image_N[taken : taken + count])
            taken += count
            if self._room():
                break
            yield from self._round(self._past)
        self._busy = False

    def finish(self) -> Iterator[NDArray[np.int64]]:
        """The sequences of the samples that still wait."""
        assert not self._busy, "the last feed is still running"
        while self._waiting:
            yield from self._round(_Past())  # nothing follows: what waits is all that is to be balanced

    def _room(self) -> int:
        """How many samples may come before sequences must be closed."""
        if not self._waiting:
            return POOL
        return min(POOL - self._waiting, int(self._number_P[0]) + REACH - self._next)

    def _take_in(self, text_N: NDArray[np.integer], image_N: NDArray[np.integer]) -> None:
        start, count = self._waiting, len(text_N)
        self._text_P[start : start + count] = text_N
        self._image_P[start : start + count] = image_N
        self._number_P[start : start + count] = np.arange(self._next, self._next + count)
        self._waiting += count
        self._fresh += count
        self._next += count

    def _round(self, past: _Past) -> Iterator[NDArray[np.int64]]:
        """Closes sequences until ``ROUND`` samples have left the pool."""
        waiting = self._waiting
        number_P, text_P, image_P = (
            each[:waiting].copy() for each in (self._number_P, self._text_P, self._image_P)
        )
        fresh = slice(waiting - self._fresh, waiting)
        self._past.add(text_P[fresh], image_P[fresh])
        self._fresh = 0
        fitting = self._fitting(text_P, image_P, past)
        stays_P = np.ones(waiting, bool)
        while fitting.left > max(waiting - ROUND, 0):
            members = fitting.fill()
            stays_P[members] = False
            yield np.sort(number_P[members])
        self._waiting = fitting.left
        self._number_P[: fitting.left] = number_P[stays_P]
        self._text_P[: fitting.left] = text_P[stays_P]
        self._image_P[: fitting.left] = image_P[stays_P]

    def _fitting(self, text_P: NDArray[np.int64], image_P: NDArray[np.int64], past: _Past) -> Fitting:
        budget = self._budget
        text = (int(text_P.sum()) + past.text) / budget.text
        image = (int(image_P.sum()) + past.image) / budget.image
        if text >= image:
            return Fitting(text_P, image_P, budget.text, budget.image, image / text if text else 0.0)
        return Fitting(image_P, text_P, budget.image, budget.text, text / image)


class _Past:
    """Tokens of the samples so far, older ones fading, as what the future will be like.

    Aiming at the pool's own proportion instead would waste what it fluctuates by.
    """

    def __init__(self) -> None:
        self.text = self.image = 0.0

    def add(self, text_N: NDArray[np.int64], image_N: NDArray[np.int64]) -> None:
        fading = 1 - min(1.0, len(text_N) / MEMORY)
        self.text = self.text * fading + int(text_N.sum())
        self.image = self.image * fading + int(image_N.sum())


def lower_bound(text_tokens: int, image_tokens: int, budget: Budget) -> int:
    """No packing needs fewer sequences than this: tokens divided by budget, the larger of the two."""
    return max(-(-text_tokens // budget.text), -(-image_tokens // budget.image))


def sized_bound(text_N: NDArray[np.integer], image_N: NDArray[np.integer], budget: Budget) -> int:
    """A lower bound that knows that samples are whole (Martello and Toth's L2, of either budget).

    At least ``lower_bound``, and far above it where many samples take more than half a budget: no two of them
    share a sequence.
    """
    bound = lower_bound(int(text_N.sum()), int(image_N.sum()), budget)
    return max(bound, _large_items_bound(text_N, budget.text), _large_items_bound(image_N, budget.image))


def _large_items_bound(size_N: NDArray[np.integer], budget: int) -> int:
    """Sequences needed by the samples above half a budget, one each, and by what does not fit beside them.

    For any k up to half a budget: a sample above ``budget - k`` leaves no room for one of k or more. Those
    from k up to a half must therefore fit beside the other large ones, or take sequences of their own.
    """
    counts = np.bincount(size_N, minlength=budget + 1)
    samples, tokens = _of_size_or_more(counts), _of_size_or_more(counts * np.arange(budget + 1))
    above_half = budget // 2 + 1
    k = np.arange(above_half)
    sharing = samples[above_half] - samples[budget + 1 - k]
    room = sharing * budget - (tokens[above_half] - tokens[budget + 1 - k])
    excess = int((tokens[k] - tokens[above_half] - room).max())
    return int(samples[above_half]) + max(0, -(-excess // budget))


def _of_size_or_more(per_size: NDArray[np.integer]) -> NDArray[np.integer]:
    """For each size, and for one more than the largest, the sum over it and all above."""
    return np.append(np.cumsum(per_size[::-1])[::-1], 0)


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
