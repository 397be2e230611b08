"""The plan of a pack artifact: which samples share a sequence, and the order of sequences.

It is held as arrays, a few bytes per sample.

Shape suffixes: E encoded samples (each piece of a split one counts), of all sources one after another; M
members of sequences (E, each as often as it occurs); S sequences; K encoded shards; R rows of all sources; P
pictures and V videos of the stream; C samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import ConfigError
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode_shards import EncodeReport
from pipelines.data.pack.mixture import Draw, plan_draw, row_stream
from pipelines.data.pack.packing import Packer
from pipelines.recipe.pack import Mixture

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
Chunk = tuple[Ints, Ints]
"""Encoded samples in stream order, and which pass over the data each belongs to."""

_SEQUENCES_PER_BLOCK = 1 << 16
_RUN = 8
_RUNS_PER_SHUFFLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSamples:
    """All encoded samples, in the order of sources, rows and pieces.

    Attributes:
        sources: Names, in the recipe's order.
        source_starts: First sample of each source, and E at the end.
        shard_starts: First sample of each encoded shard, and E at the end; K + 1 numbers.
        row_E, part_E: Row of the clean artifact, and piece of its sample.
        text_E, image_E: Tokens.
        video_E: Which are videos.
    """

    sources: tuple[str, ...]
    source_starts: Ints
    shard_starts: Ints
    row_E: Int32s
    part_E: Int32s
    text_E: Int32s
    image_E: Int32s
    video_E: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row_E)

    def source_of(self, samples: NDArray[np.integer]) -> Ints:
        """Number of the source of each of some samples."""
        return np.searchsorted(self.source_starts, samples, side="right") - 1

    def of(self, source: int, column_E: NDArray[np.generic]) -> NDArray[Any]:
        """The part of a column (``text_E``, …) that is a source's."""
        return column_E[self.source_starts[source] : self.source_starts[source + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sequences, in their final order.

    Attributes:
        sample_M: Number of each member among the encoded samples; one sequence's after another's.
        occurrence_M: Pass over the data that each belongs to, from 0.
        offsets_S: Where each sequence's members start, and M at the end; S + 1 numbers.
        video_S: Which are videos.
    """

    sample_M: Int32s
    occurrence_M: Int32s
    offsets_S: Ints
    video_S: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.video_S)


def gather(
    sources: Sequence[str], task_sources: Sequence[str], reports: Sequence[EncodeReport]
) -> EncodedSamples:
    """Joins the reports of all encoding tasks, which come in the order of sources and rows."""
    sizes = np.array([len(report.row_E) for report in reports], np.int64)
    owner = np.array([sources.index(name) for name in task_sources], np.int64)
    per_source = np.bincount(owner, weights=sizes, minlength=len(sources)).astype(np.int64)

    def joined(columns: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *columns])

    return EncodedSamples(
        sources=tuple(sources),
        source_starts=ends(per_source),
        shard_starts=ends(sizes),
        row_E=joined([report.row_E for report in reports], np.int32),
        part_E=joined([report.part_E for report in reports], np.int32),
        text_E=joined([report.text_E for report in reports], np.int32),
        image_E=joined([report.image_E for report in reports], np.int32),
        video_E=joined([report.video_E for report in reports], np.bool_),
    )


def plan_rows(encoded: EncodedSamples, mixture: Mixture) -> Draw:
    """How many rows an epoch has of each source, repeats counted.

    Raises:
        ConfigError, DataError: As :func:`pipelines.data.pack.mixture.plan_draw`.
    """
    rows = np.diff(_row_starts(encoded)[1]).tolist()
    return plan_draw(dict(zip(encoded.sources, rows, strict=True)), mixture)


def sample_stream(encoded: EncodedSamples, rows: Draw, seed: int) -> Iterator[Chunk]:
    """The encoded samples of an epoch in order: all pieces of a row follow one another, in each pass."""
    bounds_R, row_starts = _row_starts(encoded)
    for source_C, number_C, pass_C in row_stream(rows, seed):
        row_C = row_starts[source_C] + number_C
        pieces_C = bounds_R[row_C + 1] - bounds_R[row_C]
        within = np.arange(int(pieces_C.sum())) - np.repeat(np.cumsum(pieces_C) - pieces_C, pieces_C)
        yield np.repeat(bounds_R[row_C], pieces_C) + within, np.repeat(pass_C, pieces_C)


def plan_sequences(encoded: EncodedSamples, stream: Iterable[Chunk], limits: Limits, seed: int) -> Plan:
    """Packs a stream of samples, pictures together and each video alone, and shuffles the sequences.

    Args:
        stream: Which of them occur, and how often, in chunks; near samples can share a sequence.
        limits: Budgets of a sequence.
        seed: Decides the order of the sequences.

    Raises:
        ConfigError: Where the stream is empty.
    """
    pictures, videos = _Table(2), _Table(3)  # sample, occurrence; for videos also the position in the stream
    sequences = _packed(_pictures(encoded, stream, pictures, videos), limits.pictures)
    members, lengths = _joined(sequences)
    sample_P, occurrence_P = pictures.columns()
    sample_V, occurrence_V, position_V = videos.columns()
    if not len(members) and not len(sample_V):
        raise ConfigError(
            "There is no sample to pack.",
            "Every sample was filtered out or quarantined.",
            "Raise the budgets, or loosen the filters.",
        )
    first_S = members[ends(lengths)[:-1]]
    # Picture p is preceded by the videos that have at most p pictures before them.
    position_S = first_S + np.searchsorted(position_V - np.arange(len(position_V)), first_S, side="right")
    # Both kinds near to the order of the stream, then shuffled.
    stream_order = np.argsort(np.concatenate([position_S, position_V]))
    order = stream_order[shuffled(len(stream_order), seed)]
    lengths = np.concatenate([lengths, np.ones(len(position_V), np.int32)])
    at_M = _runs(ends(lengths)[:-1][order], lengths[order])
    members = np.concatenate([members, len(sample_P) + np.arange(len(sample_V), dtype=np.int32)])[at_M]
    del at_M
    return Plan(
        sample_M=np.concatenate([sample_P, sample_V])[members],
        occurrence_M=np.concatenate([occurrence_P, occurrence_V])[members],
        offsets_S=ends(lengths[order]),
        video_S=order >= len(position_S),
    )


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of ``count`` sequences that keeps reads fairly sequential.

    Runs of 8 neighbours come in random order, and their members are shuffled within 32 runs at a time: a
    reader that prefetches 256 sequences reads at 32 positions of the clean artifacts, not at 256.
    """
    rng = np.random.default_rng([seed, count])
    starts = rng.permutation(np.arange(0, count, _RUN))
    order = np.concatenate(
        [np.arange(start, min(start + _RUN, count)) for start in starts] or [np.empty(0, np.int64)]
    )
    reach = _RUN * _RUNS_PER_SHUFFLE
    for start in range(0, count, reach):
        order[start : start + reach] = rng.permutation(order[start : start + reach])
    return order.astype(np.int64)


def _row_starts(encoded: EncodedSamples) -> tuple[Int32s, Ints]:
    """First sample of each row, with E at the end, and first row of each source, with R at the end."""
    bounds_R = np.append(np.flatnonzero(encoded.part_E == 0).astype(np.int32), np.int32(len(encoded)))
    return bounds_R, np.searchsorted(bounds_R, encoded.source_starts)


def _pictures(
    encoded: EncodedSamples, stream: Iterable[Chunk], pictures: _Table, videos: _Table
) -> Iterator[tuple[Ints, Ints]]:
    """Text and image tokens of the samples to be packed; fills both tables on the way."""
    read = 0
    for sample_C, occurrence_C in stream:
        video_C = encoded.video_E[sample_C]
        videos.add(sample_C[video_C], occurrence_C[video_C], read + np.flatnonzero(video_C))
        read += len(video_C)
        sample_C, occurrence_C = sample_C[~video_C], occurrence_C[~video_C]
        pictures.add(sample_C, occurrence_C)
        yield encoded.text_E[sample_C].astype(np.int64), encoded.image_E[sample_C].astype(np.int64)


def _packed(chunks: Iterable[tuple[Ints, Ints]], budget: Budget) -> Iterator[Ints]:
    """The members of each sequence, as numbers in the stream of pictures."""
    packer = Packer(budget)
    for text_C, image_C in chunks:
        yield from packer.feed(text_C, image_C)
    yield from packer.finish()


def _joined(sequences: Iterator[Ints]) -> tuple[Int32s, Int32s]:
    """Members of all sequences, and how many each has; joined in blocks, since every array costs memory."""
    table, lengths = _Table(1), _Table(1)
    while block := list(islice(sequences, _SEQUENCES_PER_BLOCK)):
        table.add(np.concatenate(block))
        lengths.add(np.array([len(members) for members in block]))
    return table.columns()[0], lengths.columns()[0]


class _Table:
    """Columns of numbers below 2³¹ that grow block by block."""

    def __init__(self, columns: int) -> None:
        self._blocks: list[list[Int32s]] = [[np.empty(0, np.int32)] for _ in range(columns)]

    def add(self, *columns: NDArray[np.integer]) -> None:
        for blocks, column in zip(self._blocks, columns, strict=True):
            blocks.append(column.astype(np.int32))

    def columns(self) -> list[Int32s]:
        """Each column in one piece. Frees the blocks, so that they are not held twice."""
        joined = []
        for blocks in self._blocks:
            joined.append(np.concatenate(blocks))
            blocks.clear()
        return joined


def ends(counts: NDArray[np.integer]) -> Ints:
    """Where each run of a sequence of runs ends, with a 0 before; n + 1 numbers."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _runs(starts: Ints, lengths: NDArray[np.integer]) -> Int32s:
    """``start, start + 1, …`` of each run, one run after another."""
    numbers = np.arange(int(lengths.sum()), dtype=np.int32)
    numbers += np.repeat((starts - ends(lengths)[:-1]).astype(np.int32), lengths)
    return numbers
