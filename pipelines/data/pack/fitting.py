"""Filling sequences from a pool of waiting samples, one sequence after another.

Of the two budgets one is tight, the other loose: the tight one decides how many sequences there will be, and
is to be full; the loose one is to be as full as the samples' totals ask, or the samples that are left would
suit each other less and less. A sequence is filled in three steps:

1. The oldest sample always goes in, so that none waits for ever.
2. While there is room for several more, the oldest that keeps the two rooms in proportion follows.
3. Room for about two is filled by the best pair. Samples lie in a table of small cells by their two sizes,
   and for each of the oldest ``FIRST`` the cells around what it would leave hold its partner: a million pairs
   are considered in a few array operations. While more than half of the tight budget is free, samples that
   take as much have precedence: whatever else goes in shuts them out.

Shape suffixes: N samples of the pool, F candidates to be the first of a pair, C the four cells looked into.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR = 64
"""Samples looked at in step 2, oldest first."""
FIRST = 256
"""Samples looked at in step 3 to be the first of a pair, oldest first; the second may be any."""
FULL = 0.001
"""A sequence is closed once so little of it is free."""

_ROOM_FOR_PAIR = 2.5  # mean samples: below it, room is filled by a pair
_SLANT = 0.5  # how far the shares still free of the two budgets may be apart in step 2, relative to the tight
_SOFT = 0.02  # a budget that will stay emptier by this share than the tight one counts half
_LEAST_WEIGHT = 0.02
_NEITHER = 1 << 40  # tokens of a slot whose sample is gone: it fits nowhere


class Fitting:
    """A pool, and the sequences made of it.

    Args:
        tight_N, loose_N: Tokens of the samples in either budget, oldest first; each within its budget.
        tight, loose: The budgets.
        share: How full the loose budget of an ideal sequence is, from 0 to 1.
    """

    def __init__(
        self, tight_N: NDArray[np.int64], loose_N: NDArray[np.int64], tight: int, loose: int, share: float
    ) -> None:
        self.left = len(tight_N)
        self._budgets = tight, loose
        self._aimed = share * loose
        self._spare = int(loose - self._aimed)
        gap = (1 - share) / _SOFT
        self._weight = max(_LEAST_WEIGHT, 1 / (1 + gap * gap))
        self._pair_room = _ROOM_FOR_PAIR * float(tight_N.mean()) if self.left else 0.0
        self._half = tight // 2
        # One slot more than samples: the last is no sample, but what a sample without a partner pairs with.
        self._tight_N, self._loose_N = np.append(tight_N, 0), np.append(loose_N, 0)
        self._tight_list: list[int] = tight_N.tolist()
        self._loose_list: list[int] = loose_N.tolist()
        self._line = _Line(self.left)
        self._cells = _Cells(tight_N, loose_N, *self._cell_sides())
        self._tight_room = self._loose_room = 0

    def fill(self) -> list[int]:
        """Makes the next sequence: the slots of its samples, in the order they were chosen."""
        self._tight_room, self._loose_room = self._budgets
        members = [self._take(self._line.first)]
        while self.left and not self._full():
            slot = self._in_proportion() if self._tight_room > self._pair_room else None
            chosen = [slot] if slot is not None else self._best_pair()
            if not chosen:
                break
            members.extend(map(self._take, chosen))
        return members

    def _take(self, slot: int) -> int:
        self._tight_room -= self._tight_list[slot]
        self._loose_room -= self._loose_list[slot]
        self._line.remove(slot)
        self._cells.remove(slot, self._line)
        self._tight_N[slot] = _NEITHER
        self.left -= 1
        return slot

    def _full(self) -> bool:
        tight, loose = self._budgets
        unused = self._tight_room / tight + self._weight * max(self._loose_room - self._spare, 0) / loose
        return unused < FULL

    def _in_proportion(self) -> int | None:
        """The oldest sample that leaves the rooms in proportion, or of ``NEAR`` the one that does so best."""
        tight_room, loose_room, weight = self._tight_room, self._loose_room, self._weight
        tight_unit = 1 / self._budgets[0]
        loose_unit = 1 / self._aimed if self._aimed else 0.0
        to_aim = loose_room - self._spare
        best, least = None, float("inf")
        slot = self._line.first
        for _ in range(min(NEAR, self.left)):
            tight, loose = self._tight_list[slot], self._loose_list[slot]
            if tight <= tight_room and loose <= loose_room:
                tight_free, loose_free = (tight_room - tight) * tight_unit, (to_aim - loose) * loose_unit
                off = weight * abs(tight_free - loose_free) - _SLANT * tight_free
                if off <= 0:
                    return slot
                if off < least:
                    best, least = slot, off
            slot = self._line.after[slot]
        return best

    def _best_pair(self) -> list[int]:
        """The two samples, or the one, that leave the least unused; none where none of the oldest fits."""
        none, oldest = len(self._tight_list), self._line.first
        reach = slice(oldest, min(oldest + FIRST, none))
        tight_F, loose_F = self._tight_room - self._tight_N[reach], self._loose_room - self._loose_N[reach]
        first_F = np.flatnonzero((tight_F >= 0) & (loose_F >= 0))
        tight_F = np.append(tight_F[first_F], self._tight_room)
        loose_F = np.append(loose_F[first_F], self._loose_room)
        first_F = np.append(first_F + oldest, none)
        if self._tight_room > self._half:  # what takes more than half a sequence can only come now
            large_F = self._tight_N[first_F] > self._half
            if large_F.any():
                tight_F, loose_F, first_F = tight_F[large_F], loose_F[large_F], first_F[large_F]
        second_FC = self._cells.around(tight_F, loose_F - self._spare)
        tight_FC = tight_F[:, None] - self._tight_N[second_FC]
        loose_FC = loose_F[:, None] - self._loose_N[second_FC]
        tight, loose = self._budgets
        unused_FC = tight_FC * (1 / tight) + np.abs(loose_FC - self._spare) * (self._weight / loose)
        unused_FC[(tight_FC < 0) | (loose_FC < 0) | (second_FC == first_F[:, None])] = np.inf
        best = int(unused_FC.argmin())
        row, column = divmod(best, unused_FC.shape[1])
        if unused_FC[row, column] == np.inf:
            return []
        return [slot for slot in (int(first_F[row]), int(second_FC[row, column])) if slot != none]

    def _cell_sides(self) -> tuple[int, int]:
        """Tokens along either side of a cell: small where a token matters."""
        tight, loose = self._budgets
        if self._weight > 10 * _LEAST_WEIGHT:
            return max(1, tight // 512), max(1, loose // 512)
        return max(1, tight // 2048), max(1, loose // 16)


class _Line:
    """Slots in order of age, as a linked list: any can leave at once."""

    def __init__(self, count: int) -> None:
        self.after = [*range(1, count + 1), 0]  # the last entry closes the ring
        self._before = [count, *range(count)]
        self._end = count

    @property
    def first(self) -> int:
        return self.after[self._end]

    def remove(self, slot: int) -> None:
        after, before = self.after[slot], self._before[slot]
        self.after[before], self._before[after] = after, before
        self.after[slot] = -1

    def holds(self, slot: int) -> bool:
        return self.after[slot] >= 0


class _Cells:
    """A grid over the two sizes; each cell shows its oldest waiting sample, or one past the last slot."""

    def __init__(
        self, tight_N: NDArray[np.int64], loose_N: NDArray[np.int64], tight_side: int, loose_side: int
    ) -> None:
        count = len(tight_N)
        self._sides = tight_side, loose_side
        # Row 0 and column 0 stay empty, so that a cell's lower neighbours always exist.
        self._last = int(tight_N.max(initial=0)) // tight_side, int(loose_N.max(initial=0)) // loose_side
        self._columns = self._last[1] + 2
        self._shown = np.full((self._last[0] + 2) * self._columns, count, np.int64)
        self._around = np.array([0, 1, self._columns, self._columns + 1])
        cell_N = (tight_N // tight_side + 1) * self._columns + loose_N // loose_side + 1
        order_N = np.argsort(cell_N, kind="stable")
        sorted_N = cell_N[order_N]
        starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
        self._shown[sorted_N[starts]] = order_N[starts]
        following_N = np.full(count, count)
        following_N[order_N[:-1]] = np.where(sorted_N[1:] == sorted_N[:-1], order_N[1:], count)
        self._cell: list[int] = cell_N.tolist()
        self._following: list[int] = following_N.tolist()  # the next younger sample of the same cell

    def around(self, tight_F: NDArray[np.int64], loose_F: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples shown in the cell of each pair of sizes, and in the three next smaller; (F, 4)."""
        row_F = np.minimum(tight_F // self._sides[0], self._last[0]) + 1
        column_F = np.minimum(np.maximum(loose_F, 0) // self._sides[1], self._last[1]) + 1
        return self._shown[(row_F * self._columns + column_F)[:, None] - self._around]

    def remove(self, slot: int, line: _Line) -> None:
        """Shows the next sample of the slot's cell that is still in line, if the slot's was shown."""
        cell = self._cell[slot]
        if self._shown[cell] == slot:
            following, end = self._following[slot], len(self._cell)
            while following != end and not line.holds(following):
                following = self._following[following]
            self._shown[cell] = following
