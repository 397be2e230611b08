"""The textbook's packers for two budgets, over whole streams and all sequences, however many are open.

They are what a bounded pool is to be compared with: nothing limits their memory, and the decreasing ones see
every size before they begin. Each finds a sequence without searching them all. The exceptions are next fit
and ``first_fit_of``, which keep one sequence and so many open.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.data.pack.budgets import Budget

Ints = NDArray[np.int64]


def next_fit(text_N: Ints, image_N: Ints, budget: Budget) -> Iterator[list[int]]:
    """A sequence is closed by the first sample that does not fit: what streaming loaders do."""
    members: list[int] = []
    text_left, image_left = budget.text, budget.image
    for number, (text, image) in enumerate(zip(text_N.tolist(), image_N.tolist(), strict=True)):
        if text > text_left or image > image_left:
            yield members
            members, text_left, image_left = [], budget.text, budget.image
        members.append(number)
        text_left, image_left = text_left - text, image_left - image
    if members:
        yield members


def first_fit(text_N: Ints, image_N: Ints, budget: Budget) -> Iterator[list[int]]:
    """Each sample goes into the first sequence that has room for it."""
    return _first_fit(np.arange(len(text_N)), text_N, image_N, budget)


def first_fit_of(text_N: Ints, image_N: Ints, budget: Budget, most_open: int) -> Iterator[list[int]]:
    """First fit among the ``most_open`` oldest open sequences; one more closes the one that is fullest.

    Args:
        text_N, image_N: Tokens of each sample.
        budget: Of a sequence.
        most_open: Sequences that are kept open.
    """
    members: list[list[int]] = []
    text_room: list[int] = []
    image_room: list[int] = []
    for number, (text, image) in enumerate(zip(text_N.tolist(), image_N.tolist(), strict=True)):
        for place, room in enumerate(text_room):
            if room >= text and image_room[place] >= image:
                break
        else:
            if len(members) == most_open:
                full = [
                    min(t / budget.text, i / budget.image) for t, i in zip(text_room, image_room, strict=True)
                ]
                place = full.index(min(full))
                yield members.pop(place)
                del text_room[place], image_room[place]
            place = len(members)
            members.append([])
            text_room.append(budget.text)
            image_room.append(budget.image)
        members[place].append(number)
        text_room[place] -= text
        image_room[place] -= image
    yield from members


def first_fit_decreasing(text_N: Ints, image_N: Ints, budget: Budget) -> Iterator[list[int]]:
    """The same, the samples that take the largest part of a budget first."""
    return _first_fit(_decreasing(text_N, image_N, budget), text_N, image_N, budget)


def best_fit_decreasing(text_N: Ints, image_N: Ints, budget: Budget) -> Iterator[list[int]]:
    """The largest first, each into the sequence whose room in the scarcer budget it leaves smallest; of those
    that it leaves equal, into the one with the least room in the other."""
    sizes, rooms = (text_N, image_N), (budget.text, budget.image)
    if text_N.sum() / budget.text < image_N.sum() / budget.image:
        sizes, rooms = sizes[::-1], rooms[::-1]
    tight_N, loose_N = (size.tolist() for size in sizes)
    # Room in the scarce budget → (room in the other, sequence) of each, ascending; and the most other room.
    open_by_room: list[list[tuple[int, int]]] = [[] for _ in range(rooms[0] + 1)]
    most = np.full(rooms[0] + 1, -1, np.int64)
    members: list[list[int]] = []
    for number in _decreasing(text_N, image_N, budget).tolist():
        tight, loose = tight_N[number], loose_N[number]
        has_room = most[tight:] >= loose
        room = tight + int(has_room.argmax())
        if has_room[room - tight]:
            others = open_by_room[room]
            other, place = others.pop(bisect_left(others, (loose, -1)))
            most[room] = others[-1][0] if others else -1
        else:
            room, other, place = rooms[0], rooms[1], len(members)
            members.append([])
        members[place].append(number)
        insort(open_by_room[room - tight], (other - loose, place))
        most[room - tight] = open_by_room[room - tight][-1][0]
    yield from members


def _decreasing(text_N: Ints, image_N: Ints, budget: Budget) -> Ints:
    return np.argsort(-np.maximum(text_N / budget.text, image_N / budget.image), kind="stable")


def _first_fit(order_N: Ints, text_N: Ints, image_N: Ints, budget: Budget) -> Iterator[list[int]]:
    """A binary tree over the sequences holds the most room of either kind below each node."""
    leaves = 1 << max(len(order_N) - 1, 0).bit_length()
    text_room, image_room = [budget.text] * (2 * leaves), [budget.image] * (2 * leaves)
    members: list[list[int]] = []
    for number in order_N.tolist():
        text, image = int(text_N[number]), int(image_N[number])
        unseen = [1]
        while True:  # the leaves that are still empty take any sample
            node = unseen.pop()
            if text_room[node] >= text and image_room[node] >= image:
                if node >= leaves:
                    break
                unseen += (2 * node + 1, 2 * node)
        if node - leaves == len(members):
            members.append([])
        members[node - leaves].append(number)
        text_room[node] -= text
        image_room[node] -= image
        while node := node // 2:
            text_room[node] = max(text_room[2 * node], text_room[2 * node + 1])
            image_room[node] = max(image_room[2 * node], image_room[2 * node + 1])
    yield from members
