"""Which encoded samples occur, and how often: the mixture decides over rows, and their pieces follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from casa_core.errors import ConfigError
from pipelines.data.pack_plan import Chunk, EncodedSamples, Ints

_ROWS_PER_CHUNK = 1 << 16


def draw(encoded: EncodedSamples, mixture: Mapping[str, Any], seed: int) -> Iterator[Chunk]:
    """The stream that is packed: all pieces of a row follow one another, in each of its passes.

    Raises:
        ConfigError: For a mixture other than all samples once.
    """
    if any(mixture.values()):
        raise ConfigError(
            "Sources cannot be mixed yet.",
            f"pack.mixture asks for {dict(mixture)}; each sample occurs once.",
            "Leave pack.mixture out.",
        )
    bounds_R = np.append(np.flatnonzero(encoded.part_E == 0).astype(np.int32), np.int32(len(encoded)))
    row_starts = np.searchsorted(bounds_R, encoded.source_starts)
    for source_C, number_C in merged(np.diff(row_starts)):
        row_C = row_starts[source_C] + number_C
        pieces_C = bounds_R[row_C + 1] - bounds_R[row_C]
        within = np.arange(int(pieces_C.sum())) - np.repeat(np.cumsum(pieces_C) - pieces_C, pieces_C)
        samples = np.repeat(bounds_R[row_C], pieces_C) + within
        yield samples, np.zeros(len(samples), np.int64)


def merged(sizes: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Merges streams in proportion to their sizes, each in its own order; chunk by chunk, in little memory.

    Yields:
        Of the chunk's elements, which stream each comes from and its number there.
    """
    chunks = -(-int(sizes.sum()) // _ROWS_PER_CHUNK)
    begin = np.zeros(len(sizes), np.int64)
    for chunk in range(1, chunks + 1):
        # Element k of a stream of n stands at (k + ½) / n of the whole.
        end = np.clip(np.ceil(sizes * (chunk / chunks) - 0.5), 0, sizes).astype(np.int64)
        source = np.repeat(np.arange(len(sizes)), end - begin)
        number = np.concatenate([np.arange(*span) for span in zip(begin, end, strict=True)])
        order = np.lexsort((source, (number + 0.5) / sizes[source]))
        yield source[order], number[order]
        begin = end
