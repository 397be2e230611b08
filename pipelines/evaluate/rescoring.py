"""Answers that were kept, scored anew by the present version of their metrics: no model, no inference."""

from __future__ import annotations

from dataclasses import replace

from pipelines.evaluate.metrics.by_name import metric_named
from pipelines.evaluate.results import BenchmarkResult, judged, read_result, read_samples, write_result
from pipelines.storage.uri import Folder


def rescore(folder: Folder) -> tuple[BenchmarkResult, BenchmarkResult]:
    """Score a benchmark's folder anew and write it.

    Raises:
        DataError: If it holds no result.
        ConfigError: If there is no longer such a metric.

    Returns:
        The result before and after.
    """
    before = read_result(folder)
    metrics = [metric_named(one.metric) for one in (before.score, *before.beside)]
    samples, scores = judged(before.benchmark, metrics, read_samples(folder))
    after = replace(before, score=scores[0], beside=scores[1:])
    write_result(folder, after, samples)
    return before, after
