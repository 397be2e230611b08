"""Answers that were kept, scored anew by the present version of their metrics: no model, no inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines.evaluate.judge.judging import counts, points, read_judgements
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.metrics.by_name import metric_named
from pipelines.evaluate.results import (
    BenchmarkResult,
    read_result,
    score_by,
    scores_of,
    truths_of,
    write_result,
)
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
    samples = read_samples(folder)
    asked = [row for row in samples if row["score"] is not None]
    truths = truths_of(asked)
    scores = [scores_of(metric, asked, truths) for metric in metrics]
    judge = before.judge
    if metrics[0].needs_judge:
        judgements = read_judgements(folder)
        given = points(judgements)
        scores[0] = np.array([given.get(row["index"], 0.0) for row in asked])
        judge = {**judge, "counts": counts(judgements)}
    boards = [score_by(metric, own, truths) for metric, own in zip(metrics, scores, strict=True)]
    for row, score in zip(asked, scores[0], strict=True):
        row["score"] = float(score)
    after = replace(before, score=boards[0], beside=boards[1:], judge=judge)
    write_result(folder, after, samples)
    return before, after
