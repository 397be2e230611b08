"""Data mixture: how often the samples of each source occur, by over-sampling, target shares or temperature.

A mixture is one of three things, or none (every sample once):

* ``passes``: how often the samples of a source occur; 6 repeats them, 0.25 takes a quarter of them.
* ``weights``: the sources' shares of the samples, relative to one another.
* ``temperature``: shares in proportion to each source's size to the power 1 / temperature.

With shares, an epoch is as long as it takes for every source to be seen whole at least once: nothing is left
out, and scarce sources repeat. A fractional pass takes samples spread evenly over the source.

Shape suffix: C samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import ConfigError, DataError
from pipelines.recipe.pack import Mixture

Ints = NDArray[np.int64]
TOLERANCE = 0.01
"""A realised share differs from the asked one by less than this part of it, or by one sample."""
_SAMPLES_PER_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How many samples one epoch takes of each source.

    Attributes:
        sources: Names.
        available: Samples each source has.
        taken: Samples drawn of it, repeats counted.
        asked: Its share of all that are drawn, before rounding to whole samples.
    """

    sources: tuple[str, ...]
    available: tuple[int, ...]
    taken: tuple[int, ...]
    asked: tuple[float, ...]

    def report(self) -> dict[str, Any]:
        """For the data card: passes and shares of samples, as asked and as they came out."""
        total = max(sum(self.taken), 1)
        return {
            "measure": "samples",
            "sources": {
                name: {
                    "passes": round(taken / available, 4) if available else 0.0,
                    "asked": round(asked, 6),
                    "realised": round(taken / total, 6),
                    "left_out": max(available - taken, 0),
                }
                for name, available, taken, asked in zip(
                    self.sources, self.available, self.taken, self.asked, strict=True
                )
            },
        }


def plan_draw(available: Mapping[str, int], mixture: Mixture) -> Draw:
    """How many samples each source gives.

    Args:
        available: Samples of each source, in the recipe's order.
        mixture: What was asked for.

    Raises:
        ConfigError: Where the mixture names a source that is not there, gives weights to some sources only,
            or asks for samples of a source that has none.
        DataError: Where a share cannot be met.
    """
    sizes = np.array(list(available.values()), np.float64)
    _check_names(available, mixture)
    if mixture.weights or mixture.temperature:
        if mixture.weights:
            weight = np.array([mixture.weights[name] for name in available], np.float64)
        else:
            assert mixture.temperature is not None
            weight = np.where(sizes > 0, sizes ** (1 / mixture.temperature), 0.0)
        share = weight / max(weight.sum(), np.finfo(np.float64).tiny)
        present = share > 0
        # As long as the source that is seen once takes: all others repeat.
        length = float((sizes[present] / share[present]).max(initial=0.0))
        wanted = share * length
    else:
        wanted = sizes * np.array([mixture.passes.get(name, 1.0) for name in available], np.float64)
    taken = np.rint(wanted).astype(np.int64)
    asked = wanted / max(float(wanted.sum()), 1.0)
    draw = Draw(
        sources=tuple(available),
        available=tuple(available.values()),
        taken=tuple(taken.tolist()),
        asked=tuple(asked.tolist()),
    )
    _check_shares(draw)
    return draw


def row_stream(draw: Draw, seed: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """The epoch in chunks: each source in its own order, spread evenly over the whole.

    Args:
        draw: From :func:`plan_draw`.
        seed: Decides which samples a fractional pass takes.

    Yields:
        For each sample of the chunk its source's number, its own number there and its pass from 0; (C,) each.
    """
    taken = np.array(draw.taken, np.int64)
    shifts = np.random.default_rng([seed, len(taken)]).random(len(taken))
    for source_C, position_C in merged(taken):
        number_C, pass_C = np.empty_like(position_C), np.empty_like(position_C)
        for source in np.unique(source_C).tolist():
            own = source_C == source
            number_C[own], pass_C[own] = _of_source(
                position_C[own], draw.available[source], draw.taken[source], float(shifts[source])
            )
        yield source_C, number_C, pass_C


def merged(sizes: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Merges streams in proportion to their sizes, each in its own order, in chunks that bound memory.

    Yields:
        For each element of the chunk, the stream that it comes from and its number there; (C,) each.
    """
    chunks = -(-int(sizes.sum()) // _SAMPLES_PER_CHUNK)
    begin = np.zeros(len(sizes), np.int64)
    for chunk in range(1, chunks + 1):
        # Element k of a stream of n stands at (k + ½) / n of the whole.
        end = np.clip(np.ceil(sizes * (chunk / chunks) - 0.5), 0, sizes).astype(np.int64)
        source = np.repeat(np.arange(len(sizes)), end - begin)
        number = np.concatenate([np.arange(*span) for span in zip(begin, end, strict=True)])
        order = np.lexsort((source, (number + 0.5) / sizes[source]))
        yield source[order], number[order]
        begin = end


def _of_source(position: Ints, available: int, taken: int, shift: float) -> tuple[Ints, Ints]:
    """Position in a source's part of the epoch → the sample's number, and its pass."""
    whole, rest = divmod(taken, available)
    pass_ = position // available
    number = position % available
    in_part = pass_ == whole
    # Every available / rest-th sample, from a start that the seed chooses; ascending, none twice.
    number[in_part] = ((number[in_part] + shift) * available / max(rest, 1)).astype(np.int64)
    return np.minimum(number, available - 1), pass_


def _check_names(available: Collection[str], mixture: Mixture) -> None:
    for name, named in (("passes", mixture.passes), ("weights", mixture.weights)):
        for unknown in sorted(set(named) - set(available)):
            raise ConfigError(
                f"`mixture.{name}` names {unknown!r}, which is no source.",
                "",
                f"Use one of {', '.join(available)}.",
            )
    if mixture.weights and (missing := [name for name in available if name not in mixture.weights]):
        raise ConfigError(
            f"`mixture.weights` does not name {', '.join(missing)}.",
            "Shares are relative to one another, so each source needs one.",
            "Give each a weight, or use passes.",
        )


def _check_shares(draw: Draw) -> None:
    """That rounding to whole samples left every share where it was asked to be."""
    total = sum(draw.taken)
    for name, available, taken, asked in zip(
        draw.sources, draw.available, draw.taken, draw.asked, strict=True
    ):
        if asked > 0 and available == 0:
            raise ConfigError(
                f"The mixture asks for samples of {name!r}, which has none.",
                "All were filtered out or quarantined, or its corpus is empty.",
                "Leave the source out, or loosen its filters.",
            )
        if abs(taken - asked * total) > max(1.0, TOLERANCE * asked * total):
            raise DataError(
                f"Source {name!r} has {taken / total:.4%} of the samples instead of {asked:.4%}.",
                "Whole samples do not come closer.",
                "Use weights that differ less, or more samples.",
            )
