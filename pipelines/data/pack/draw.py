"""Which encoded samples occur, and how often: the mixture decides over rows, and their pieces follow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.data.pack.mixture import Draw, Mixture, plan_draw, stream
from pipelines.data.pack.plan import Chunk, EncodedSamples, Int32s, Ints


def plan_rows(encoded: EncodedSamples, mixture: Mixture) -> Draw:
    """How many rows each source gives to an epoch, repeats counted.

    Raises:
        ConfigError, DataError: As :func:`pipelines.data.pack.mixture.plan_draw`.
    """
    rows = np.diff(_row_starts(encoded)[1]).tolist()
    return plan_draw(dict(zip(encoded.sources, rows, strict=True)), mixture)


def draw(encoded: EncodedSamples, rows: Draw, seed: int) -> Iterator[Chunk]:
    """The stream that is packed: all pieces of a row follow one another, in each of its passes."""
    bounds_R, row_starts = _row_starts(encoded)
    for source_C, number_C, pass_C in stream(rows, seed):
        row_C = row_starts[source_C] + number_C
        pieces_C = bounds_R[row_C + 1] - bounds_R[row_C]
        within = np.arange(int(pieces_C.sum())) - np.repeat(np.cumsum(pieces_C) - pieces_C, pieces_C)
        yield np.repeat(bounds_R[row_C], pieces_C) + within, np.repeat(pass_C, pieces_C)


def _row_starts(encoded: EncodedSamples) -> tuple[Int32s, Ints]:
    """First sample of each row, of all sources one after another, with E at the end; first row of each
    source, with R at the end."""
    bounds_R = np.append(np.flatnonzero(encoded.part_E == 0).astype(np.int32), np.int32(len(encoded)))
    return bounds_R, np.searchsorted(bounds_R, encoded.source_starts)
