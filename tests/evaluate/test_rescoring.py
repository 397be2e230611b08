"""Answers that were kept are scored anew without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.kept.files import RESULT, SAMPLES, read_samples
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.rescoring import rescore
from pipelines.evaluate.results import read_result
from pipelines.evaluate.tables import open_tables
from tests.support.evaluate.results import write_evaluation
from tests.support.evaluate.tables import drawn_rows, write_own


def test_an_older_rules_scores_become_the_present_ones(tmp_path: Path):
    tables = open_tables(own_benchmark(write_own(tmp_path, drawn_rows(12))))
    right = write_evaluation(tmp_path, tables, lambda at, question: "red")
    folder = tmp_path / "drawn"
    bytes_ = (folder / SAMPLES).read_bytes()
    older = json.loads((folder / RESULT).read_text())
    older["score"] |= {"value": 1.0, "version": "0"}
    (folder / RESULT).write_text(json.dumps(older))
    before, after = rescore(folder)
    assert (before.score.value, before.score.version) == (1.0, "0")
    assert after == right == read_result(folder)
    assert (folder / SAMPLES).read_bytes() == bytes_


def test_a_metric_of_whole_sets_scores_the_whole_set(tmp_path: Path):
    own = own_benchmark(write_own(tmp_path, drawn_rows(9)))
    tables = open_tables(replace(own, metric=METRICS["cider"]))
    result = write_evaluation(
        tmp_path,
        tables,
        lambda at, question: ValueError("lost") if at == 4 else question.truth.answers[0],
    )
    scores = [row["score"] for row in read_samples(tmp_path / "drawn")]
    assert result.score.value == 1000 * np.mean(scores) > 0
    assert scores[4] == 0 < scores[3]
