"""Which queries attend to which keys: segments, and the index tensors that gather their tokens.

Layout is computed on the host, in numpy, and each tensor that a backend needs is made once, when the first
layer uses it: no layer waits for the device.

Shape suffixes: T query tokens, N key tokens, X either, S segments, B segments of one bucket, L tokens of the
longest, Q/K longest query/key run of a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# What padding is weighed against, in scores (one query by one key): a row gathered, and a further call of
# the kernel. From timings on one CPU core, 16 heads of 128, forward and backward: a score takes about 0.6 µs,
# a key's row 10 µs, and a further call less than 1 ms. Of 0, 512, 1024,
# 4096, … scores a call, 1024 is within 10 % of the best for windows, documents and towers alike.
ROW_COST = 16
CALL_COST = 1024
# Calls on tokens that have to be copied do this many scores, roughly: enough to be worth a call.
COPIED_SCORES = 32 * CALL_COST
# Tokens are gathered one by one where runs of neighbours are shorter than this on average.
SHORTEST_PIECE = 16


# Tokens in flat order: one tensor, or several that stand one after another (image keys, then text keys).
Tokens = torch.Tensor | Sequence[torch.Tensor]


@dataclass(frozen=True, eq=False)
class TokenGather:
    """Gathers rows of flat tokens into another order, in parts.

    Attributes:
        lengths: Rows of each part.
        index: The rows, one by one; ``None`` where they stand in order already, or move as pieces.
        cuts: Lengths of the pieces that the flat tokens are cut into, where they move as pieces.
        pieces: Pieces of each part, in order.
    """

    lengths: list[int]
    index: torch.Tensor | None = None
    cuts: list[int] | None = None
    pieces: list[list[int]] | None = None

    @classmethod
    def of(cls, parts: Sequence[IntArray], rows: int, device: torch.device) -> TokenGather:
        """The rows at the indices ``parts`` of a tensor with ``rows`` of them."""
        lengths = [len(part) for part in parts]
        index_X = np.concatenate(parts)
        if len(index_X) == rows and (np.diff(index_X) == 1).all():
            return cls(lengths)
        new_X = np.diff(index_X, prepend=-2) != 1
        new_X[np.cumsum([0, *lengths[:-1]])] = True
        starts = np.flatnonzero(new_X)
        first, end = index_X[starts], index_X[np.append(starts[1:], len(index_X)) - 1] + 1
        borders = np.unique(np.concatenate([[0, rows], first, end]))
        low, high = np.searchsorted(borders, first), np.searchsorted(borders, end)
        if (high - low).sum() * SHORTEST_PIECE > len(index_X):
            return cls(lengths, index=to_device(index_X, device))
        part_of_run = np.searchsorted(np.cumsum(lengths), starts, side="right")
        pieces: list[list[int]] = [[] for _ in lengths]
        for part, from_, to in zip(part_of_run, low, high, strict=True):
            pieces[part].extend(range(from_, to))
        return cls(lengths, cuts=np.diff(borders).tolist(), pieces=pieces)

    @property
    def is_needed(self) -> bool:
        """Whether any token has to move."""
        return self.index is not None or self.pieces is not None

    def take(self, tokens: Tokens) -> Iterator[torch.Tensor]:
        """The parts, each made when it is asked for: views where nothing has to move."""
        if self.pieces is not None and self.cuts is not None:
            cut = _cut(tokens, self.cuts)
            yield from (torch.cat([cut[piece] for piece in part]) for part in self.pieces)
            return
        flat = joined(tokens)
        if self.index is not None:
            flat = flat.index_select(0, self.index)
        # A split in one part would still copy its gradient.
        yield from flat.split(self.lengths) if len(self.lengths) > 1 else [flat]

    def whole(self, tokens: Tokens) -> torch.Tensor:
        """The gathered rows, where there is one part."""
        (part,) = self.take(tokens)
        return part


@dataclass(frozen=True, eq=False)
class Bucket:
    """Segments padded to a common length, for one call of ``scaled_dot_product_attention``.

    Attributes:
        query_length_S, key_length_S: Tokens of each segment, on the host.
        device: Where masks go.
    """

    query_length_S: IntArray
    key_length_S: IntArray
    device: torch.device

    @property
    def segments(self) -> int:
        """How many segments."""
        return len(self.key_length_S)

    @property
    def longest_query(self) -> int:
        """Queries of the longest segment: the length that the others are padded to."""
        return int(self.query_length_S.max())

    @property
    def longest_key(self) -> int:
        """Keys of the longest segment: the length that the others are padded to."""
        return int(self.key_length_S.max())

    @cached_property
    def has_equal_lengths(self) -> bool:
        """Each segment has as many queries as keys."""
        return bool((self.query_length_S == self.key_length_S).all())

    @cached_property
    def key_mask_S11K(self) -> torch.Tensor | None:
        """True where a key is real; ``None`` without padding."""
        if (self.key_length_S == self.longest_key).all():
            return None
        real_SK = np.arange(self.longest_key) < self.key_length_S[:, None]
        return to_device(real_SK[:, None, None], self.device)

    @cached_property
    def causal_mask_S1QK(self) -> torch.Tensor:
        """True where a query may see a key; a segment's queries are its last keys.

        One segment stands for all of them (S = 1) where their lengths are equal.
        """
        queries_S, keys_S = self.query_length_S, self.key_length_S
        if (queries_S == queries_S[0]).all() and (keys_S == keys_S[0]).all():
            queries_S, keys_S = queries_S[:1], keys_S[:1]
        last_SQ = np.arange(self.longest_query) + (keys_S - queries_S)[:, None]
        # Padding sees its segment too: its row is never read, but must not be empty (NaN).
        last_SQ = np.minimum(last_SQ, keys_S[:, None] - 1)
        return to_device((np.arange(self.longest_key) <= last_SQ[..., None])[:, None], self.device)


@dataclass(frozen=True, eq=False)
class PaddedLayout:
    """Segments in buckets of similar lengths.

    Attributes:
        buckets: One kernel call each.
        queries, keys: The token at each position of each bucket, segment by segment; any token for padding.
        outputs: Each query's row in the buckets' outputs one after another, with a row of zeros at the end.
        has_outside: Some query is in no segment: it reads that row.
    """

    buckets: list[Bucket]
    queries: TokenGather
    keys: TokenGather
    outputs: TokenGather
    has_outside: bool


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Tokens sorted by segment, for kernels that take runs of them.

    Attributes:
        queries, keys: The tokens in that order, those of no segment left out, in one part.
        query_ends, key_ends: Running totals of the segments' lengths, 0 first; (S + 1,), int32.
        longest_query, longest_key: Longest run.
        outputs: Each query's row in the sorted order, with a row of zeros at the end.
        has_outside: Some query is in no segment: it reads that row.
    """

    queries: TokenGather
    keys: TokenGather
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    outputs: TokenGather
    has_outside: bool


@dataclass(frozen=True, eq=False)
class Segments:
    """Which queries attend to which keys, built once per forward and shared by its layers.

    Attributes:
        query_segment_T, key_segment_N: Segment of each token, −1 outside every segment; on the host. Every
            segment has a query and a key.
        device: Where the tokens are.
    """

    query_segment_T: IntArray
    key_segment_N: IntArray
    device: torch.device

    @classmethod
    def build(
        cls, query_segment_T: IntArray, key_segment_N: IntArray, count: int, device: torch.device | str
    ) -> Segments | None:
        """Segments that have both a query and a key; ``None`` when there is none at all."""
        queries_S = np.bincount(query_segment_T[query_segment_T >= 0], minlength=count)
        keys_S = np.bincount(key_segment_N[key_segment_N >= 0], minlength=count)
        live_S = (queries_S > 0) & (keys_S > 0)
        if not live_S.any():
            return None
        renumber_S = np.where(live_S, np.cumsum(live_S) - 1, -1)
        return cls(
            query_segment_T=np.where(query_segment_T >= 0, renumber_S[query_segment_T], -1),
            key_segment_N=np.where(key_segment_N >= 0, renumber_S[key_segment_N], -1),
            device=torch.device(device),
        )

    @cached_property
    def query_length_S(self) -> IntArray:
        """Queries of each segment."""
        return np.bincount(self.query_segment_T[self.query_segment_T >= 0])

    @cached_property
    def key_length_S(self) -> IntArray:
        """Keys of each segment."""
        return np.bincount(self.key_segment_N[self.key_segment_N >= 0])

    def check_causal(self) -> None:
        """A segment's queries are its last keys, so it has at least as many keys."""
        assert (self.query_length_S <= self.key_length_S).all(), "a causal segment has more queries than keys"

    def visible_TN(self, *, causal: bool) -> torch.Tensor:
        """True where a query sees a key, as one dense matrix."""
        query_T, key_N = (to_device(x, self.device) for x in (self.query_segment_T, self.key_segment_N))
        visible_TN = (query_T[:, None] == key_N[None]) & (query_T >= 0)[:, None]
        if causal:
            before_S = self.key_length_S - self.query_length_S
            last_T = _rank(self.query_segment_T) + before_S[self.query_segment_T]
            rank_N = _rank(self.key_segment_N)
            visible_TN &= to_device(rank_N, self.device)[None] <= to_device(last_T, self.device)[:, None]
        return visible_TN

    @cached_property
    def padded(self) -> PaddedLayout:
        """The layout of the padded backend."""
        queries_S, keys_S = self.query_length_S, self.key_length_S
        query_order, key_order = _sorted(self.query_segment_T), _sorted(self.key_segment_N)
        arrange = lambda buckets: TokenGather.of(  # noqa: E731
            [_pad(key_order, keys_S, some)[0] for some in buckets], len(self.key_segment_N), self.device
        )
        buckets = bucket_by_length(queries_S, keys_S)
        keys = arrange(buckets)
        if keys.is_needed:
            buckets = [part for bucket_S in buckets for part in _small(bucket_S, queries_S, keys_S)]
            keys = arrange(buckets)
        queries = [_pad(query_order, queries_S, some) for some in buckets]
        is_query = np.concatenate([real for _, real in queries])
        row_T = np.full(len(self.query_segment_T), -1)
        row_T[np.concatenate([index for index, _ in queries])[is_query]] = np.flatnonzero(is_query)
        outputs, has_outside = _outputs(row_T, len(is_query), self.device)
        return PaddedLayout(
            buckets=[Bucket(queries_S[some], keys_S[some], self.device) for some in buckets],
            queries=TokenGather.of([index for index, _ in queries], len(self.query_segment_T), self.device),
            keys=keys,
            outputs=outputs,
            has_outside=has_outside,
        )

    @cached_property
    def packed(self) -> PackedLayout:
        """The layout of kernels for runs of varying length."""
        query_order, key_order = _sorted(self.query_segment_T), _sorted(self.key_segment_N)
        row_T = np.full(len(self.query_segment_T), -1)
        row_T[query_order] = np.arange(len(query_order))
        outputs, has_outside = _outputs(row_T, len(query_order), self.device)
        return PackedLayout(
            queries=TokenGather.of([query_order], len(self.query_segment_T), self.device),
            keys=TokenGather.of([key_order], len(self.key_segment_N), self.device),
            query_ends=to_device(_ends(self.query_length_S).astype(np.int32), self.device),
            key_ends=to_device(_ends(self.key_length_S).astype(np.int32), self.device),
            longest_query=int(self.query_length_S.max()),
            longest_key=int(self.key_length_S.max()),
            outputs=outputs,
            has_outside=has_outside,
        )


def to_device(array: NDArray[np.generic], device: torch.device | str) -> torch.Tensor:
    """A host array on the device. Its memory is not pinned, so the copy has left it before this returns, and
    yet waits for nothing that is queued on the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def parts_of(tokens: Tokens) -> Sequence[torch.Tensor]:
    """The tensors that stand one after another."""
    return [tokens] if isinstance(tokens, torch.Tensor) else tokens


def joined(tokens: Tokens) -> torch.Tensor:
    """The tokens as one tensor."""
    if isinstance(tokens, torch.Tensor):
        return tokens
    return torch.cat(list(tokens)) if len(tokens) > 1 else tokens[0]


def _cut(tokens: Tokens, lengths: list[int]) -> list[torch.Tensor]:
    """Views of neighbouring tokens, so many each; a piece across two tensors joins them first."""
    parts = parts_of(tokens)
    if not {*accumulate(len(part) for part in parts)} <= {*accumulate(lengths)}:
        parts = [joined(tokens)]
    pieces: list[torch.Tensor] = []
    for part in parts:
        inside: list[int] = []
        while sum(inside) < len(part):
            inside.append(lengths[len(pieces) + len(inside)])
        pieces += part.split(inside)
    return pieces


def bucket_by_length(query_length_S: IntArray, key_length_S: IntArray) -> list[IntArray]:
    """Segments in buckets so that padding one of them to its longest costs less than a further bucket would.

    A bucket is cut in two, by key length or by query length, wherever that saves most, for as long as it
    saves more than a call costs. Buckets stand in the order of their first segments, so that tokens which
    need not move do not.
    """
    done: list[IntArray] = []
    pending = [np.arange(len(key_length_S))]
    while pending:
        bucket_S = pending.pop()
        best, cut = CALL_COST, None
        for lengths_S in (key_length_S, query_length_S):
            order_S = bucket_S[np.argsort(lengths_S[bucket_S], kind="stable")]
            up = _cost(query_length_S[order_S], key_length_S[order_S])
            down = _cost(query_length_S[order_S[::-1]], key_length_S[order_S[::-1]])[::-1]
            saved = up[-1] - (up[:-1] + down[1:])
            if len(saved) and saved.max() > best:
                best, at = saved.max(), int(saved.argmax()) + 1
                cut = order_S[:at], order_S[at:]
        if cut is None:
            done.append(np.sort(bucket_S))
        else:
            pending.extend(cut)
    return sorted(done, key=lambda bucket_S: bucket_S[0])


def _small(bucket_S: IntArray, query_length_S: IntArray, key_length_S: IntArray) -> list[IntArray]:
    """A bucket in parts that are only large enough to be worth a call: what is copied for one stays in the
    processor's cache until it is read, and its memory serves the next."""
    whole = _cost(query_length_S[bucket_S], key_length_S[bucket_S])[-1]
    parts = min(len(bucket_S), max(1, int(whole // COPIED_SCORES)))
    return np.array_split(bucket_S, parts)


def _cost(query_length_S: IntArray, key_length_S: IntArray) -> IntArray:
    """Cost of a bucket of the first 1, 2, … segments, in scores."""
    query_S, key_S = np.maximum.accumulate(query_length_S), np.maximum.accumulate(key_length_S)
    return np.arange(1, len(query_S) + 1) * (query_S * key_S + ROW_COST * (query_S + key_S))


def _pad(order_X: IntArray, length_S: IntArray, segment_B: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Tokens of some segments, padded to the longest with their first, and which are real."""
    step_L = np.arange(length_S[segment_B].max())
    real_BL = step_L < length_S[segment_B, None]
    index_BL = order_X[_ends(length_S)[segment_B, None] + np.where(real_BL, step_L, 0)]
    return index_BL.ravel(), real_BL.ravel()


def _outputs(row_T: IntArray, taken: int, device: torch.device) -> tuple[TokenGather, bool]:
    """Where each query finds its output among ``taken`` rows; whether some need a row of zeros after them."""
    has_outside = bool((row_T < 0).any())
    return TokenGather.of([np.where(row_T < 0, taken, row_T)], taken + has_outside, device), has_outside


def _sorted(segment_X: IntArray) -> IntArray:
    """Tokens by segment, in flat order within each; those of no segment left out."""
    order_X = np.argsort(segment_X, kind="stable")
    return order_X[np.count_nonzero(segment_X < 0) :]


def _ends(length_S: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(length_S)])


def _rank(segment_X: IntArray) -> IntArray:
    """How many tokens of its segment stand before each token."""
    order_X = np.argsort(segment_X, kind="stable")
    first_X = np.searchsorted(segment_X[order_X], segment_X[order_X])
    rank_X = np.empty_like(segment_X)
    rank_X[order_X] = np.arange(len(segment_X)) - first_X
    return rank_X
