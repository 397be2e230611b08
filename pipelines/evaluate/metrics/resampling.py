"""Intervals of benchmark scores, and two models compared on the same questions. Pure functions.

What is not independent is resampled together: both questions of a picture of MME, all questions about one
video. Where a headline is put together from strata (MME's categories, the tasks of MLVU), each stratum is
resampled by itself, since its size is part of the benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluate.metrics.base import Clusters, FloatArray, Metric, Truth
from pipelines.evaluate.metrics.intervals import Estimate

RESAMPLES = 2000
FLIPS = 10_000
_AT_ONCE = 4_000_000
"""Numbers of a block of draws: 32 MB of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same questions.

    Attributes:
        difference: Headline of the first minus that of the second, with the paired bootstrap's 95 % interval.
        p_value: Two-sided; how often chance alone gives a difference at least as large.
        test: ``McNemar, exact`` for right and wrong answers to independent questions, else ``sign flips``.
        better, worse: Number of clusters in which the first model has more, and fewer, points.
    """

    difference: Estimate
    p_value: float
    test: str
    better: int
    worse: int


def bootstrap(
    metric: Metric,
    scores: FloatArray,
    truths: Sequence[Truth],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The headline in the metric's unit with a 95 % percentile interval over clusters.

    Raises:
        ValueError, DataError: As `Metric.clusters` does.
    """
    clusters = metric.clusters(scores, truths)
    drawn = np.concatenate([metric.headline(clusters, n) for n in _draws(clusters, resamples, seed)])
    return _estimate(metric.total(scores, truths), drawn, len(scores))


def compare(
    metric: Metric,
    first: FloatArray,
    second: FloatArray,
    truths: Sequence[Truth],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models' scores of the same questions, [n] each, in the same order.

    Raises:
        ValueError: If the numbers of scores differ.
        DataError: As `Metric.clusters` does.
    """
    one, two = metric.clusters(first, truths), metric.clusters(second, truths)
    drawn = np.concatenate(
        [metric.headline(one, n) - metric.headline(two, n) for n in _draws(one, resamples, seed)]
    )
    value = metric.total(first, truths) - metric.total(second, truths)
    gains = one.points - two.points
    better, worse = int(np.sum(gains > 0)), int(np.sum(gains < 0))
    if len(one.names) == 1 and np.all(one.weights == 1) and np.all(np.isin(gains, (-1.0, 0.0, 1.0))):
        test, p_value = "McNemar, exact", mcnemar(better, worse)
    else:
        test, p_value = "sign flips", _sign_flips(_shares(one) * gains, seed)
    return Comparison(
        difference=_estimate(value, drawn, len(first)),
        p_value=p_value,
        test=test,
        better=better,
        worse=worse,
    )


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): the questions that only one model answers right are
    a fair coin's throws where both are equally good.

    Args:
        better, worse: Questions that only the first model, and only the second, answers right.
    """
    throws = better + worse
    tail = sum(math.comb(throws, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**throws)


def _draws(clusters: Clusters, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each cluster is drawn, [b, g] per block, every stratum as many times as it has clusters."""
    rng = np.random.default_rng(seed)
    count = len(clusters.points)
    sizes = np.bincount(clusters.strata, minlength=len(clusters.names))
    block = max(1, _AT_ONCE // count)
    for start in range(0, resamples, block):
        counts = np.empty((min(block, resamples - start), count))
        for stratum, size in enumerate(sizes):
            members = clusters.strata == stratum
            counts[:, members] = rng.multinomial(size, np.full(size, 1 / size), size=len(counts))
        yield counts


def _shares(clusters: Clusters) -> FloatArray:
    """What one point of a cluster adds to the headline, up to a common factor, [g]."""
    weights = np.bincount(clusters.strata, clusters.weights, len(clusters.names))
    return 1.0 / weights[clusters.strata]


def _sign_flips(gains: FloatArray, seed: int) -> float:
    """Two-sided p-value of the sum of ``gains`` where each could as well have the other sign."""
    gains = gains[gains != 0]
    if not len(gains):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(gains.sum()) * (1 - 1e-9)
    block = max(1, _AT_ONCE // len(gains))
    hits = 0
    for start in range(0, FLIPS, block):
        signs = rng.integers(0, 2, size=(min(block, FLIPS - start), len(gains))) * 2 - 1
        hits += int(np.sum(np.abs(signs @ gains) >= observed))
    return (hits + 1) / (FLIPS + 1)


def _estimate(value: float, drawn: FloatArray, count: int) -> Estimate:
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    return Estimate(value, min(low, value), max(high, value), count)
