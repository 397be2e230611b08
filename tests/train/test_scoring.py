"""A model in training is scored by another process, from copies that training leaves behind."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.dag.settings import read_settings
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.evaluate.held_out.scoring import score_model
from pipelines.train.checkpoint.export import export
from pipelines.train.metrics import read_scores
from pipelines.train.run import worker_environment
from pipelines.train.scoring import Scoring
from pipelines.train.settings import TrainJob
from pipelines.train.snapshots import Snapshots
from tests.support.core.artifacts import TrainingData, write_training_data
from tests.support.evaluate.run import EVALUATE, vqa_rows, write_clean
from tests.support.own_ray import own_ray
from tests.support.train.jobs import make_job
from tests.support.train.workers import Assignment, finish, start_workers

SPEC: dict[str, Any] = {
    "steps": 6,
    "sequences_per_step": 3,
    "videos_per_step": 2,
    "learning_rate": 3e-3,
    "checkpoint_every": 2,
    "score_every": 2,
    "scored_questions": 6,
}
SETTINGS = read_settings(BenchmarkSettings, EVALUATE)


def scored(job: TrainJob) -> TrainJob:
    return replace(job, settings=replace(job.settings, evaluate=SETTINGS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write_training_data(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def trained(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A run of six steps whose snapshots nobody has scored, and one beside it without snapshots."""
    root = tmp_path_factory.mktemp("run")
    job = make_job(data, SPEC, seed=1, output=root / "scored", keep=9, zero_stage=2)
    plain = make_job(data, SPEC | {"score_every": 0}, seed=1, output=root / "plain", zero_stage=2)
    finish(start_workers(2, [Assignment(scored(job)), Assignment(plain)]))
    return scored(job)


def snapshots_of(job: TrainJob) -> Snapshots:
    return Snapshots(Path(job.checkpoints), Path(job.output))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_copies_are_taken_every_so_many_steps_and_change_nothing(trained: TrainJob, tmp_path: Path):
    snapshots = snapshots_of(trained)
    assert snapshots.waiting() == [2, 4], "the evaluate stage scores the model after the last step"
    export(Path(trained.checkpoints), tmp_path / "exported", step=4)
    assert weights(Path(str(snapshots.folder(4)))) == weights(tmp_path / "exported")
    output = Path(trained.output)
    assert weights(output / "model") == weights(output.parent / "plain" / "model")


@pytest.mark.slow
def test_a_process_scores_each_copy_once_and_removes_it(trained: TrainJob, tmp_path: Path):
    write_clean(tmp_path / "vqa", vqa_rows(12))
    write_clean(tmp_path / "none", [])
    sources = {"vqa": tmp_path / "vqa", "none": tmp_path / "none"}
    snapshots = snapshots_of(trained)
    expected = {step: score_model(snapshots.folder(step), sources, SETTINGS, 6) for step in (2, 4)}
    job = replace(trained, sources={name: str(folder) for name, folder in sources.items()})
    with own_ray(2), Scoring(job, worker_environment(gpus=False)):
        pass
    assert read_scores(Path(job.output)) == expected
    assert all(scores.keys() == {"vqa_accuracy"} for scores in expected.values())
    assert snapshots.waiting() == []
    assert not any(Path(str(snapshots.folder(step))).exists() for step in (2, 4))


@pytest.mark.slow
def test_a_step_that_was_scored_is_not_written_again(data: TrainingData, tmp_path: Path):
    job = scored(make_job(data, SPEC | {"steps": 3}, seed=1, output=tmp_path / "run"))
    Path(job.output).mkdir()
    snapshots_of(job).scored(2, {"vqa_accuracy": 0.5})
    finish(start_workers(1, [Assignment(job)]))
    assert snapshots_of(job).waiting() == []
    assert snapshots_of(job).scores() == {2: {"vqa_accuracy": 0.5}}


@pytest.mark.slow
def test_a_copy_that_cannot_be_scored_is_reported_and_training_goes_on(
    tmp_path: Path, data: TrainingData, caplog: pytest.LogCaptureFixture
):
    job = scored(make_job(data, SPEC, seed=1, output=tmp_path / "run"))
    write_clean(tmp_path / "vqa", vqa_rows(3))
    folder = Path(job.checkpoints) / "snapshots"
    (folder / "step-00000002").mkdir(parents=True)
    (folder / "2.whole").touch()
    job = replace(job, sources={"vqa": str(tmp_path / "vqa")})
    with own_ray(1), caplog.at_level(logging.WARNING), Scoring(job, worker_environment(gpus=False)):
        pass
    assert "step 2 is not scored" in caplog.text
    assert "not a finished checkpoint" in caplog.text
    assert read_scores(Path(job.output)) == {}
