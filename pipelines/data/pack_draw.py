"""Which encoded samples occur, and how often: the mixture decides over rows, and their pieces follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from casa_core.errors import ConfigError
from pipelines.data.pack_plan import Chunk, EncodedSamples
from pipelines.data.packing import interleave

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
    source_R, number_R = interleave(np.diff(row_starts).tolist())
    for start in range(0, len(source_R), _ROWS_PER_CHUNK):
        stop = start + _ROWS_PER_CHUNK
        row_C = row_starts[source_R[start:stop]] + number_R[start:stop]
        occurrence_C = np.zeros(len(row_C), np.int64)
        pieces_C = bounds_R[row_C + 1] - bounds_R[row_C]
        within = np.arange(int(pieces_C.sum())) - np.repeat(np.cumsum(pieces_C) - pieces_C, pieces_C)
        yield np.repeat(bounds_R[row_C], pieces_C) + within, np.repeat(occurrence_C, pieces_C)
