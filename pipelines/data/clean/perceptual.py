"""Difference hashes of pictures, and finding those that lie within a Hamming distance of one another.

A hash has 64 bits: in a thumbnail of 8 x 9 grey averages, whether each is darker than its right neighbour.
Scaling, another compression or a change of brightness turn few of them, so near pictures have near hashes.

To find all pairs within distance d, hashes are cut into d + 2 blocks. At most d of them differ in a near
pair, so at least two agree: for every choice of two blocks, only hashes that agree there are compared (for
d = 3 some 26 of 64 bits, so that even millions of hashes share a bucket with few). Exact, not approximate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 64
MAX_DISTANCE = 8
"""Beyond it buckets become large, and so does the share of pairs that have nothing to do with each other."""
THUMBNAIL = (8, 9)
"""Rows and columns of the thumbnail whose neighbours are compared."""
_PAIRS_AT_ONCE = 1 << 22

Hashes = NDArray[np.uint64]


def difference_hash(thumbnail: NDArray[np.uint8]) -> int:
    """The 64-bit difference hash of a grey thumbnail of (8, 9).

    A picture without any change from left to right has hash 0, whatever it shows.
    """
    assert thumbnail.shape == THUMBNAIL
    darker = thumbnail[:, :-1] < thumbnail[:, 1:]
    return int.from_bytes(np.packbits(darker).tobytes(), "big")


def hamming(left: Hashes, right: Hashes) -> NDArray[np.uint8]:
    """How many bits differ, element by element."""
    return np.bitwise_count(left ^ right)


def earlier_neighbours(
    hashes: Hashes, distance: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """For each of n lists of hashes the first one before it that is within ``distance``, place by place.

    Args:
        hashes: (n, k), in the order that decides who is first: k pictures each.
        distance: Bits that may differ between two pictures, at most ``MAX_DISTANCE``.
        groups: (n,); only what is of one group is compared. None: all of it.

    Returns:
        (n,) numbers; -1 where there is none before it. Memory grows with n, not with pairs.
    """
    # Equal ones first, and out of the way: a thousand copies would be half a million pairs.
    original = first_equal(hashes, groups)
    order = np.flatnonzero(original == np.arange(len(hashes)))
    nearest = np.arange(len(order))
    own, kinds = hashes[order], None if groups is None else groups[order]
    for mask in _block_pairs(distance):
        _improve(nearest, own, kinds, mask, distance)
    found = np.full(len(hashes), -1, np.int64)
    near = nearest < np.arange(len(order))
    found[order[near]] = order[nearest[near]]
    # A copy's first neighbour is its original, or what came before that and is near to it.
    copies = original < np.arange(len(hashes))
    found[copies] = np.where(found[original] >= 0, found[original], original)[copies]
    return found


def first_equal(hashes: Hashes, groups: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """For each of n lists of hashes, (n, k), the number of the first that is equal; perhaps its own.

    ``groups`` is as in ``earlier_neighbours``.
    """
    columns = [*hashes.T] if groups is None else [*hashes.T, groups]
    order = np.lexsort(columns) if columns else np.arange(len(hashes))
    first = np.empty(len(hashes), np.int64)
    first[order] = order[_bucket_starts([column[order] for column in columns])]
    return first


class HashIndex:
    """A list of hashes to look near ones up in.

    Args:
        hashes: (n,).
        distance: Bits that may differ, at most ``MAX_DISTANCE``.
    """

    def __init__(self, hashes: Hashes, distance: int) -> None:
        self.hashes = hashes
        self.distance = distance
        self._tables: list[tuple[np.uint64, Hashes, NDArray[np.int64]]] = []
        for mask in _block_pairs(distance):
            order = np.argsort(hashes & mask, kind="stable")
            self._tables.append((mask, (hashes & mask)[order], order))

    def first_near(self, queries: Hashes) -> NDArray[np.int64]:
        """For each query the number of the first hash within the distance; -1 where there is none."""
        missing = len(self.hashes)
        found = np.full(len(queries), missing, np.int64)
        for mask, keys, order in self._tables:
            masked = queries & mask
            begin, end = np.searchsorted(keys, masked, "left"), np.searchsorted(keys, masked, "right")
            for query, place in _expanded(begin, end):
                number = order[place]
                near = hamming(self.hashes[number], queries[query]) <= self.distance
                np.minimum.at(found, query[near], number[near])
        return np.where(found < missing, found, -1)


def _bucket_starts(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """For each index of a sorted table, the index where its run of equal rows begins."""
    starts = np.zeros(len(columns[0]), bool)
    starts[:1] = True
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


def _improve(
    nearest: NDArray[np.int64],
    hashes: Hashes,
    groups: NDArray[np.int64] | None,
    mask: np.uint64,
    distance: int,
) -> None:
    """Lowers ``nearest`` to the first near one among those whose first hash agrees under ``mask``."""
    keys = hashes[:, 0] & mask
    columns = [keys] if groups is None else [keys, groups]
    order = np.lexsort(columns)
    begin = _bucket_starts([column[order] for column in columns])
    # The sort is stable: within a bucket, what stands earlier in the table came earlier in the stream.
    for late, early in _expanded(begin, np.arange(len(order))):
        left, right = order[early], order[late]
        for column in hashes.T:
            near = hamming(column[left], column[right]) <= distance
            left, right = left[near], right[near]
        np.minimum.at(nearest, right, left)


def _block_pairs(distance: int) -> Iterator[np.uint64]:
    """Masks of every two of the ``distance + 2`` blocks that 64 bits are cut into."""
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"A Hamming distance of {distance} is not from 0 to {MAX_DISTANCE}.")
    edges = [BITS * number // (distance + 2) for number in range(distance + 3)]
    blocks = [((1 << end) - 1) ^ ((1 << begin) - 1) for begin, end in pairwise(edges)]
    for one, other in combinations(blocks, 2):
        yield np.uint64(one | other)


def _expanded(
    begin: NDArray[np.int64], end: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs (n, place) with ``begin[n] <= place < end[n]``, a few million at a time."""
    counts = end - begin
    ends = np.cumsum(counts)
    some = np.flatnonzero(counts)
    start = 0
    while start < len(some):
        # At least one n, even where it alone has more pairs than that.
        reach = ends[some[start]] - counts[some[start]] + _PAIRS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(ends[some], reach, "right")))
        own = some[start:stop]
        owner = np.repeat(own, counts[own])
        offset = np.arange(len(owner)) - np.repeat(
            ends[own] - counts[own] - ends[own[0]] + counts[own[0]], counts[own]
        )
        yield owner, begin[owner] + offset
        start = stop
