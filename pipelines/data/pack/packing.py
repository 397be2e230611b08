"""Packing under two token budgets: which samples share a sequence, in one pass and bounded memory.

:class:`Packer` keeps a pool of at most ``POOL`` samples, of which :class:`Fitting` makes sequences. Every
sequence holds the oldest sample of the pool, and the stream stops when it is ``REACH`` ahead of that one, so
the samples of a sequence are fewer than ``REACH`` apart. The outcome depends on the order and sizes of the
samples alone.

The *tight* budget decides how many sequences there will be, and is to be full. The *loose* one is to be as
full as the samples' totals ask, or the samples that are left would suit each other less and less. A sequence
is filled in three steps:

1. The oldest sample goes in, so that none waits for ever.
2. While there is room for several more, the oldest that keeps the two rooms in proportion follows.
3. Room for about two is filled by the best pair. A grid of small cells holds the pool by its two sizes, and
   for each of the oldest ``FIRST`` samples the cells around what it would leave hold its partner: a million
   pairs are considered in a few array operations. While more than half of the tight budget is free, samples
   that take as much have precedence: whatever else goes in shuts them out.

Shape suffixes: N samples fed, P samples of the pool, F candidates to be the first of a pair, C the four cells
looked into.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.data.pack.budgets import Budget

POOL = 4096
"""Samples in the pool at most."""
REACH = 2 * POOL
"""Samples of one sequence are fewer than this many apart in the stream."""
ROUND = POOL // 4
"""Samples packed before the pool is filled again."""
MEMORY = 1 << 17
"""Past samples that count for the proportion of text to images, besides the pool."""
NEAR = 64
"""Samples looked at in step 2, oldest first."""
FIRST = 256
"""Samples looked at in step 3 to be the first of a pair, oldest first; the second may be any."""
FULL = 0.001
"""A sequence is closed once so little of it is free."""

_ROOM_FOR_PAIR = 2.5  # mean samples: below it, room is filled by a pair
_SLANT = 0.5  # how far the shares still free of the two budgets may be apart in step 2, relative to the tight
_SOFT = 0.02  # a budget that is to stay emptier by this share than the tight one counts half
_LEAST_WEIGHT = 0.02
_GONE = 1 << 40  # tokens of a sample that has left the pool: it fits nowhere


class Packer:
    """Packs a stream of samples that is fed in pieces; how it is cut into pieces makes no difference.

    Samples are numbered from 0 in the order they are fed. Each must fit into an empty sequence.

    Args:
        budget: The limits of each sequence.
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
        """Adds the stream's next samples.

        Args:
            text_N, image_N: Their tokens.

        Yields:
            The numbers of each sequence's samples, ascending, as soon as it is closed. The generator must run
            to its end before the next call.
        """
        assert text_N.shape == image_N.shape, "A sample has text tokens and image tokens."
        assert text_N.max(initial=0) <= self._budget.text, "What exceeds a budget is quarantined before."
        assert image_N.max(initial=0) <= self._budget.image, "What exceeds a budget is quarantined before."
        assert min(text_N.min(initial=0), image_N.min(initial=0)) >= 0, "A sample has at least 0 tokens."
        assert not self._busy, "The last feed is still running."
        self._busy = True
        added = 0
        while True:
            count = min(self._room(), len(text_N) - added)
            self._add(text_N[added : added + count], image_N[added : added + count])
            added += count
            if self._room():
                break
            yield from self._round(self._past)
        self._busy = False

    def finish(self) -> Iterator[NDArray[np.int64]]:
        """Yields the sequences of the samples that are left in the pool."""
        assert not self._busy, "The last feed is still running."
        while self._waiting:
            yield from self._round(_Past())  # nothing follows: only the pool is to be balanced

    def _room(self) -> int:
        """How many samples may be added before sequences must be closed."""
        if not self._waiting:
            return POOL
        return min(POOL - self._waiting, int(self._number_P[0]) + REACH - self._next)

    def _add(self, text_N: NDArray[np.integer], image_N: NDArray[np.integer]) -> None:
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
    """Fading sums of the tokens so far: an estimate of the proportion of text to images to come.

    The pool's own proportion fluctuates, and aiming at it would waste as much.
    """

    def __init__(self) -> None:
        self.text = self.image = 0.0

    def add(self, text_N: NDArray[np.int64], image_N: NDArray[np.int64]) -> None:
        fading = 1 - min(1.0, len(text_N) / MEMORY)
        self.text = self.text * fading + int(text_N.sum())
        self.image = self.image * fading + int(image_N.sum())


class Fitting:
    """Makes sequences of a pool of samples, which are numbered by age.

    Args:
        tight_P, loose_P: Tokens of the samples under either budget, oldest first; each within its budget.
        tight, loose: The budgets.
        share: How full the loose budget of an ideal sequence is, from 0 to 1.
    """

    def __init__(
        self, tight_P: NDArray[np.int64], loose_P: NDArray[np.int64], tight: int, loose: int, share: float
    ) -> None:
        self.left = len(tight_P)
        self._budgets = tight, loose
        self._aimed = share * loose
        self._spare = int(loose - self._aimed)
        gap = (1 - share) / _SOFT
        self._weight = max(_LEAST_WEIGHT, 1 / (1 + gap * gap))
        self._pair_room = _ROOM_FOR_PAIR * float(tight_P.mean()) if self.left else 0.0
        self._half = tight // 2
        # One entry more than samples: the last is the empty partner of a sample that goes in alone.
        self._tight_P, self._loose_P = np.append(tight_P, 0), np.append(loose_P, 0)
        self._tight_list: list[int] = tight_P.tolist()
        self._loose_list: list[int] = loose_P.tolist()
        self._line = _Line(self.left)
        self._cells = _Cells(tight_P, loose_P, *self._cell_sides())
        self._tight_room = self._loose_room = 0

    def fill(self) -> list[int]:
        """Makes the next sequence: the pool's numbers of its samples, in the order they were chosen."""
        self._tight_room, self._loose_room = self._budgets
        members = [self._take(self._line.first)]
        while self.left and not self._full():
            number = self._in_proportion() if self._tight_room > self._pair_room else None
            chosen = [number] if number is not None else self._best_pair()
            if not chosen:
                break
            members.extend(map(self._take, chosen))
        return members

    def _take(self, number: int) -> int:
        self._tight_room -= self._tight_list[number]
        self._loose_room -= self._loose_list[number]
        self._line.remove(number)
        self._cells.remove(number, self._line)
        self._tight_P[number] = _GONE
        self.left -= 1
        return number

    def _full(self) -> bool:
        tight, loose = self._budgets
        unused = self._tight_room / tight + self._weight * max(self._loose_room - self._spare, 0) / loose
        return unused < FULL

    def _in_proportion(self) -> int | None:
        """The oldest sample that leaves the rooms in proportion, or the best of ``NEAR``; ``None``: none."""
        tight_room, loose_room, weight = self._tight_room, self._loose_room, self._weight
        tight_unit = 1 / self._budgets[0]
        loose_unit = 1 / self._aimed if self._aimed else 0.0
        to_aim = loose_room - self._spare
        best, least = None, float("inf")
        number = self._line.first
        for _ in range(min(NEAR, self.left)):
            tight, loose = self._tight_list[number], self._loose_list[number]
            if tight <= tight_room and loose <= loose_room:
                tight_free, loose_free = (tight_room - tight) * tight_unit, (to_aim - loose) * loose_unit
                off = weight * abs(tight_free - loose_free) - _SLANT * tight_free
                if off <= 0:
                    return number
                if off < least:
                    best, least = number, off
            number = self._line.after[number]
        return best

    def _best_pair(self) -> list[int]:
        """The two samples, or the one, that leave the least unused; empty where none of the oldest fits."""
        none, oldest = len(self._tight_list), self._line.first
        reach = slice(oldest, min(oldest + FIRST, none))
        tight_F, loose_F = self._tight_room - self._tight_P[reach], self._loose_room - self._loose_P[reach]
        first_F = np.flatnonzero((tight_F >= 0) & (loose_F >= 0))
        tight_F = np.append(tight_F[first_F], self._tight_room)
        loose_F = np.append(loose_F[first_F], self._loose_room)
        first_F = np.append(first_F + oldest, none)
        if self._tight_room > self._half:  # what takes more than half a sequence can only come now
            large_F = self._tight_P[first_F] > self._half
            if large_F.any():
                tight_F, loose_F, first_F = tight_F[large_F], loose_F[large_F], first_F[large_F]
        second_FC = self._cells.around(tight_F, loose_F - self._spare)
        tight_FC = tight_F[:, None] - self._tight_P[second_FC]
        loose_FC = loose_F[:, None] - self._loose_P[second_FC]
        tight, loose = self._budgets
        unused_FC = tight_FC * (1 / tight) + np.abs(loose_FC - self._spare) * (self._weight / loose)
        unused_FC[(tight_FC < 0) | (loose_FC < 0) | (second_FC == first_F[:, None])] = np.inf
        best = int(unused_FC.argmin())
        row, column = divmod(best, unused_FC.shape[1])
        if unused_FC[row, column] == np.inf:
            return []
        return [number for number in (int(first_F[row]), int(second_FC[row, column])) if number != none]

    def _cell_sides(self) -> tuple[int, int]:
        """Tokens along either side of a cell: small where a token matters."""
        tight, loose = self._budgets
        if self._weight > 10 * _LEAST_WEIGHT:
            return max(1, tight // 512), max(1, loose // 512)
        return max(1, tight // 2048), max(1, loose // 16)


class _Line:
    """The pool's samples by age, as a linked list with removal in constant time."""

    def __init__(self, count: int) -> None:
        self.after = [*range(1, count + 1), 0]  # the last entry closes the ring
        self._before = [count, *range(count)]
        self._end = count

    @property
    def first(self) -> int:
        """The oldest sample."""
        return self.after[self._end]

    def remove(self, number: int) -> None:
        after, before = self.after[number], self._before[number]
        self.after[before], self._before[after] = after, before
        self.after[number] = -1

    def holds(self, number: int) -> bool:
        return self.after[number] >= 0


class _Cells:
    """A grid over the two sizes; a cell shows its oldest sample, or the number of samples if empty."""

    def __init__(
        self, tight_P: NDArray[np.int64], loose_P: NDArray[np.int64], tight_side: int, loose_side: int
    ) -> None:
        count = len(tight_P)
        self._sides = tight_side, loose_side
        # Row 0 and column 0 stay empty, so that a cell's lower neighbours always exist.
        self._last = int(tight_P.max(initial=0)) // tight_side, int(loose_P.max(initial=0)) // loose_side
        self._columns = self._last[1] + 2
        self._shown = np.full((self._last[0] + 2) * self._columns, count, np.int64)
        self._around = np.array([0, 1, self._columns, self._columns + 1])
        cell_P = (tight_P // tight_side + 1) * self._columns + loose_P // loose_side + 1
        order_P = np.argsort(cell_P, kind="stable")
        sorted_P = cell_P[order_P]
        starts = np.flatnonzero(np.diff(sorted_P, prepend=-1))
        self._shown[sorted_P[starts]] = order_P[starts]
        following_P = np.full(count, count)
        following_P[order_P[:-1]] = np.where(sorted_P[1:] == sorted_P[:-1], order_P[1:], count)
        self._cell: list[int] = cell_P.tolist()
        self._following: list[int] = following_P.tolist()  # the next younger sample of the same cell

    def around(self, tight_F: NDArray[np.int64], loose_F: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples shown in the cell of each pair of sizes, and in the three next smaller; (F, 4)."""
        row_F = np.minimum(tight_F // self._sides[0], self._last[0]) + 1
        column_F = np.minimum(np.maximum(loose_F, 0) // self._sides[1], self._last[1]) + 1
        return self._shown[(row_F * self._columns + column_F)[:, None] - self._around]

    def remove(self, number: int, line: _Line) -> None:
        """Shows the next sample of the same cell that is still in the pool, if this one was shown."""
        cell = self._cell[number]
        if self._shown[cell] == number:
            following, end = self._following[number], len(self._cell)
            while following != end and not line.holds(following):
                following = self._following[following]
            self._shown[cell] = following
