"""Equal trainings make equal artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.dag import artifact
from pipelines.train import metrics
from tests.support.core.artifacts import write_training_data
from tests.support.train.jobs import changed, make_job
from tests.support.train.workers import Assignment, finish, start_workers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_trainings_take_different_times_and_have_one_content_digest(tmp_path: Path, workers: int):
    (tmp_path / "data").mkdir()
    spec = {"steps": 4, "checkpoint_every": 2, "sequences_per_step": 2, "learning_rate": 1e-3}
    job = make_job(write_training_data(tmp_path / "data"), spec, seed=1)
    outputs = [tmp_path / "first", tmp_path / "second"]
    for output in outputs:
        finish(start_workers(workers, [Assignment(changed(job, output=output))]))
        metrics.set_times_apart(output)
        shutil.rmtree(output / "checkpoints")  # in a run they lie beside the artifact
    first, second = (artifact.commit(output, {"kind": "train"}, {}, {}) for output in outputs)
    assert {name for name in first["files"] if "/" not in name} == {"metrics.jsonl", "timings.jsonl"}
    assert first["files"]["timings.jsonl"] != second["files"]["timings.jsonl"]
    assert first["content_digest"] == second["content_digest"]
