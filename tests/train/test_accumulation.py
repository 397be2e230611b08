"""Any ZeRO stage, workers and accumulation: one training. Fifty steps of pictures, videos and text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.store.readers import PackReader
from pipelines.train import metrics
from pipelines.train.loop import learning_rate_factor
from pipelines.train.sampler import StepSampler
from pipelines.train.settings import TrainJob
from tests.support.core.artifacts import write_training_data
from tests.support.naive.training import train_plainly
from tests.support.train.jobs import changed, make_job
from tests.support.train.workers import Assignment, finish, start_workers

pytestmark = pytest.mark.slow
SPEC: dict[str, Any] = {
    "steps": 50,
    "sequences_per_step": 4,
    "videos_per_step": 4,
    "image_video_ratio": [3, 1],
    "learning_rate": 1.5e-3,
    "existing_learning_rate": 5e-4,
    "warmup_steps": 5,
    "decay_steps": 10,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "checkpoint_every": 50,
}
SPLITS = [(1, 4), (2, 2), (4, 1)]
"""Workers and accumulation steps of four sequences a step."""
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    data = write_training_data(tmp_path_factory.mktemp("training"), questions=24, text_only=7)
    return make_job(data, SPEC, seed=3, zero_stage=0, sequences_per_forward=1)


@pytest.fixture(scope="module")
def runs(job: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for workers, _ in SPLITS:
        work = [
            Assignment(changed(job, output=root / f"{workers}-zero{stage}", zero_stage=stage))
            for stage in STAGES
        ]
        finish(start_workers(workers, work))
    return root


def plainly(job: TrainJob, shuffled: int | None = None) -> np.ndarray:
    order = StepSampler(
        PackReader(Path(job.pack)).by_kind,
        ratio=(3, 1),
        sequences_per_step={"image": 4, "video": 4},
        seed=job.settings.seed,
    )
    steps = [order[number].sequences for number in range(SPEC["steps"])]
    factors = [learning_rate_factor(job.settings.train, number) for number in range(SPEC["steps"])]
    return np.array(train_plainly(job, steps, factors, shuffled=shuffled).losses)


@pytest.fixture(scope="module")
def plain(job: TrainJob) -> np.ndarray:
    return plainly(job)


@pytest.fixture(scope="module")
def envelope(job: TrainJob, plain: np.ndarray) -> np.ndarray:
    """How far a step's loss can be from another's by the order of summation alone: the farthest of four
    shuffles up to each step."""
    farthest = np.max([np.abs(plainly(job, shuffled) - plain) for shuffled in range(4)], axis=0)
    return np.maximum.accumulate(farthest)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("workers", "accumulation"), SPLITS)
def test_losses_are_those_of_the_plain_loop(
    plain: np.ndarray, envelope: np.ndarray, runs: Path, workers: int, accumulation: int, stage: int
):
    lines = metrics.read_lines(runs / f"{workers}-zero{stage}" / metrics.FILE)
    losses = np.array([line["loss"] for line in lines])
    apart = np.abs(losses - plain)
    print(f"{workers} x {accumulation}, ZeRO-{stage}: {apart[:10].max():.1e} {apart.max():.1e}", end=" ")
    print(f"(reordering alone: {envelope[9]:.1e} {envelope[-1]:.1e})")
    assert apart[:10].max() < 1e-5
    # An envelope of four samples is not the farthest there is; another order may go a few times as far.
    assert (apart <= np.maximum(5 * envelope, 2e-6)).all()


def test_the_steps_have_pictures_videos_and_sequences_without_either(job: TrainJob, plain: np.ndarray):
    pack = PackReader(Path(job.pack))
    assert {kind: len(numbers) for kind, numbers in pack.by_kind.items()} == {"image": 12, "video": 4}
    assert 2 <= sum(not pack[number]["images"] for number in range(12)) < 12
    assert plain[-1] < plain[0] - 0.5
