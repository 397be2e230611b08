"""Checks, in every run, that each input row is packed, filtered or quarantined exactly once.

The plan is checked against the input, and each written shard against the plan: by a sum of 64-bit hashes of
its documents' identities, which does not depend on order and misses a lost, repeated or exchanged document
with a probability of 2⁻⁶⁴.

Shape suffixes: N rows of a source, E encoded samples, M members of sequences, C members of a chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import StoreError
from pipelines.data.pack.mixture import Draw
from pipelines.data.pack.plan import EncodedSamples, Plan

Words = NDArray[np.uint64]
_SHOWN = 5
_MEMBERS_PER_STEP = 1 << 20


def check_rows(
    source: str,
    keep_N: NDArray[np.bool_],
    rejected: NDArray[np.integer],
    row_E: NDArray[np.int32],
    part_E: NDArray[np.int32],
) -> None:
    """Checks that every row of a source is encoded in all its pieces, filtered or quarantined.

    Args:
        keep_N: Which of its rows the filters kept.
        rejected: Numbers of the quarantined rows.
        row_E, part_E: Rows and pieces that are encoded, in order.

    Raises:
        StoreError: Where that is not so; names the first rows.
    """
    count = len(keep_N)
    fates = (~keep_N).astype(np.int64)
    fates += np.bincount(rejected, minlength=count)[:count]
    fates += np.bincount(row_E[part_E == 0], minlength=count)[:count]
    _none(source, "rows are not exactly one of packed, filtered and quarantined", fates != 1)
    # In order of rows and pieces, each piece follows the one before it or begins another row.
    follows = np.ones(len(row_E), bool)
    follows[1:] = np.where(
        part_E[1:] == 0, row_E[1:] > row_E[:-1], (row_E[1:] == row_E[:-1]) & (part_E[1:] == part_E[:-1] + 1)
    )
    if len(part_E):
        follows[0] = part_E[0] == 0
    broken = np.zeros(count, bool)
    broken[row_E[~follows]] = True
    _none(source, "rows have pieces missing or out of order", broken)


def check_plan(encoded: EncodedSamples, plan: Plan, rows: Draw) -> None:
    """Checks that a plan has every sample once in each of its passes, and all pieces of a row equally often.

    Args:
        rows: How many rows of each source the mixture takes. Samples may be left out only where these are
            fewer than there are.

    Raises:
        StoreError: Where that is not so; names the first rows.
    """
    passes_E = np.bincount(plan.sample_M, minlength=len(encoded)).astype(np.int32)
    # One position for each sample and pass; each must be taken, and there are as many members as positions.
    ends_E = np.cumsum(passes_E, dtype=np.int32)
    taken = np.zeros(len(plan.sample_M), bool)
    for start in range(0, len(taken), _MEMBERS_PER_STEP):
        members = slice(start, start + _MEMBERS_PER_STEP)
        sample_C, occurrence_C = plan.sample_M[members], plan.occurrence_M[members]
        known_C = (occurrence_C >= 0) & (occurrence_C < passes_E[sample_C])
        sample_C, occurrence_C = sample_C[known_C], occurrence_C[known_C]
        taken[ends_E[sample_C] - passes_E[sample_C] + occurrence_C] = True
    for number, source in enumerate(encoded.sources):
        passes, ends, part = (encoded.of(number, column) for column in (passes_E, ends_E, encoded.part_E))
        if not len(passes):
            continue
        begin = ends[0] - passes[0]
        upto = np.cumsum(np.concatenate([[0], taken[begin : ends[-1]]]), dtype=np.int32)
        first = np.flatnonzero(part == 0)
        as_first = np.repeat(passes[first], np.diff(np.append(first, len(part))))
        once = upto[ends - begin] - upto[ends - passes - begin] == passes
        wrong = (passes != as_first) | ~once
        if rows.taken[number] >= rows.available[number]:
            wrong |= passes == 0
        row = encoded.of(number, encoded.row_E)
        broken = np.zeros(int(row[-1]) + 1, bool)
        broken[row[wrong]] = True
        _none(source, "rows are not planned in all their pieces and passes, each once", broken)
        drawn = int(passes[first].sum())
        if drawn != rows.taken[number]:
            raise StoreError(
                f"Source {source!r} does not add up: {drawn} rows are planned.",
                f"The mixture takes {rows.taken[number]} rows of it.",
                "Run again; if it happens again, report it.",
            )


def checksum(
    source: NDArray[np.integer] | int,
    row: NDArray[np.integer],
    part: NDArray[np.integer],
    occurrence: NDArray[np.integer],
) -> int:
    """The sum of a 64-bit hash per document, modulo 2⁶⁴; it does not depend on the documents' order."""
    hashed = _mixed(_mixed(_words(source) << np.uint64(32) | _words(row)) ^ _pair(part, occurrence))
    return int(hashed.sum(dtype=np.uint64))


def planned_checksum(encoded: EncodedSamples, plan: Plan, start: int, stop: int) -> int:
    """The checksum of the documents of sequences ``start`` to ``stop`` of a plan."""
    first, end = plan.offsets_S[start], plan.offsets_S[stop]
    samples, occurrences = plan.sample_M[first:end], plan.occurrence_M[first:end]
    rows, parts = encoded.row_E[samples], encoded.part_E[samples]
    return checksum(encoded.source_of(samples), rows, parts, occurrences)


def check_written(name: str, planned: int, written: int) -> None:
    """Checks that a shard holds the documents that were planned for it, by their checksums.

    Raises:
        StoreError: If it does not.
    """
    if planned != written:
        raise StoreError(
            f"The packed shard {name} does not hold the documents planned for it.",
            f"The checksum of its documents is {written:016x} instead of {planned:016x}.",
            "Remove the stage's unfinished folder and run again; if it happens again, report it.",
        )


def _none(source: str, what: str, wrong_N: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(wrong_N)
    if len(rows):
        shown = ", ".join(map(str, rows[:_SHOWN].tolist())) + (", …" if len(rows) > _SHOWN else "")
        raise StoreError(
            f"Source {source!r} does not add up: {len(rows)} {what}.",
            f"The first are rows {shown} of its clean artifact.",
            "Remove the stage's unfinished folder and run again; if it happens again, report it.",
        )


def _pair(part: NDArray[np.integer], occurrence: NDArray[np.integer]) -> Words:
    return _words(part) << np.uint64(32) | _words(occurrence)


def _words(values: NDArray[np.integer] | int) -> Words:
    return np.asarray(values).astype(np.uint64)


def _mixed(words: Words) -> Words:
    """The finaliser of SplitMix64: each bit of a word changes half of the bits of its image."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
