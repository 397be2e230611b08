"""What stops a run: a loss that is no number, a jump; with the samples, and before weights are spoilt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from casa_core.errors import ConfigError, TrainingError
from pipelines.data.store.readers import PackReader
from pipelines.train import metrics
from pipelines.train.checkpoint.save import list_checkpoints
from pipelines.train.loader import Document
from pipelines.train.loss_guard import WARM_UP, LossGuard
from pipelines.train.sampler import StepSampler, hold_out
from pipelines.train.settings import TrainJob
from pipelines.train.step import StepTotals
from tests.support.core.artifacts import write_training_data
from tests.support.train.jobs import changed, make_job
from tests.support.train.workers import Assignment, finish, start_workers

SPEC: dict[str, Any] = {
    "steps": 8,
    "sequences_per_step": 2,
    "videos_per_step": 2,
    "image_video_ratio": [3, 1],
    "learning_rate": 1.5e-3,
    "warmup_steps": 0,
    "decay_steps": 0,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "checkpoint_every": 2,
    "evaluate_every": 2,
    "held_out_sequences": 2,
    "spike_nats": 3.0,
}


def totals(loss: float, *samples: tuple[str, float]) -> StepTotals:
    documents = [(Document("vqa", name, 5), own) for name, own in samples]
    return StepTotals(loss, 100, 50, 10, 0.0, {}, documents)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_the_worst_samples_first(loss: float):
    step = totals(loss, ("a", 1.0), ("b", float("nan")), ("c", 2.0))
    with pytest.raises(TrainingError, match=rf"(?s)The loss of step 7 is {loss}.*vqa/b \(nan\), vqa/c \(2\)"):
        LossGuard(0, 1).check_loss(7, "image", step)


def test_a_jump_of_a_kind_that_is_settled_stops_and_one_before_does_not():
    guard = LossGuard(3.0, 1)
    for step in range(1, WARM_UP + 1):
        guard.check_loss(step, "image", totals(6.0 if step == 3 else 1.0))
    guard.check_loss(51, "video", totals(9.0))  # another kind, not settled yet
    guard.check_loss(52, "image", totals(3.9))
    with pytest.raises(TrainingError, match=r"(?s)step 53 jumped to 4.10, from about 1.00.*spike_nats"):
        guard.check_loss(53, "image", totals(4.1, ("a", 4.1)))


def test_no_jump_stops_where_the_guard_is_off():
    guard = LossGuard(0, 1)
    for step in range(1, 200):
        guard.check_loss(step, "image", totals(1.0 if step < 150 else 90.0))


def test_a_gradient_that_is_no_number_stops():
    with pytest.raises(TrainingError, match=r"gradient of step 9 is nan, with a loss of 1\.000"):
        LossGuard(0, 1).check_norm(9, float("nan"), totals(1.0, ("a", 1.0)))


def test_what_is_held_out_is_never_trained_on_whatever_the_number_of_workers():
    by_kind = {"image": np.arange(20), "video": np.arange(20, 30), "none": np.arange(0)}
    rest, held = hold_out(by_kind, 4, seed=1)
    assert {kind: len(numbers) for kind, numbers in held.items()} == {"image": 4, "video": 4}
    assert not set(rest["image"]) & set(held["image"])
    assert set(rest["image"]) | set(held["image"]) == set(range(20))
    assert hold_out(by_kind, 4, seed=1)[1] == held != hold_out(by_kind, 4, seed=2)[1]
    with pytest.raises(ConfigError, match=r"(?s)the pack has 10 video sequences.*Hold out 5 or fewer"):
        hold_out(by_kind, 6, seed=1)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    data = write_training_data(tmp_path_factory.mktemp("training"), questions=40)
    return make_job(data, SPEC, seed=1, output=tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def poisoned(job: TrainJob) -> tuple[Path, str, int, list[str]]:
    """A run of two workers that meets a broken picture in its sixth step: output, error, number, samples."""
    pack = PackReader(Path(job.pack))
    seed = job.settings.seed
    rest, held = hold_out(pack.by_kind, 2, seed=seed)
    order = StepSampler(rest, ratio=(3, 1), sequences_per_step={"image": 2, "video": 2}, seed=seed)
    seen = {n for step in range(5) for n in order[step].sequences} | {n for own in held.values() for n in own}
    number = next(n for n in order[5].sequences if n not in seen)
    samples = [document["sample_id"] for document in pack[number]["documents"]]
    with pytest.raises(ProcessRaisedException) as caught:
        finish(start_workers(2, [Assignment(job, poisoned=number)]))
    return Path(job.output), str(caught.value), number, samples


def test_a_broken_picture_ends_a_run_of_two_workers_by_its_name(poisoned: tuple[Path, str, int, list[str]]):
    _, error, _, samples = poisoned
    assert "TrainingError: The loss of step 6 is nan" in error
    named = re.findall(r"vqa/(q\d+) \(nan\)", error)
    assert named
    assert set(named) <= set(samples)


def test_the_checkpoint_before_it_is_whole_and_of_the_best_held_out_loss(
    poisoned: tuple[Path, str, int, list[str]], job: TrainJob
):
    output, *_ = poisoned
    lines = metrics.read_lines(output / metrics.FILE)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    measured = {line["step"]: line["held_out_loss"] for line in lines if line["held_out_loss"]}
    assert measured.keys() == {2, 4}
    assert all(own.keys() == {"image", "video"} for own in measured.values())
    saved = list_checkpoints(output / "checkpoints")
    assert [one.steps_done for one in saved] == [2, 4]
    assert [one.marks["metric"] for one in saved] == [sum(measured[step].values()) / 2 for step in (2, 4)]


def test_each_sources_loss_and_tokens_make_up_the_steps(poisoned: tuple[Path, str, int, list[str]]):
    for line in metrics.read_lines(poisoned[0] / metrics.FILE):
        (source,) = line["source_losses"]
        assert source == {"image": "vqa", "video": "live"}[line["kind"]]
        assert line["source_losses"][source] == pytest.approx(line["loss"], rel=1e-9)
        assert line["workers"] == 2
        assert re.fullmatch("[0-9a-f]{8}", line["batch"])


@pytest.mark.slow
def test_without_the_broken_picture_the_same_command_ends_well(
    poisoned: tuple[Path, str, int, list[str]], job: TrainJob
):
    finish(start_workers(1, [Assignment(changed(job, output=job.output, zero_stage=3))]))
    lines = metrics.read_lines(poisoned[0] / metrics.FILE)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["workers"] for line in lines] == [2, 2, 2, 2, 1, 1, 1, 1]
