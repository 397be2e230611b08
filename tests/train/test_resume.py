"""Exact resume: under another ZeRO stage, on another number of workers, frozen parameters bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train import metrics
from pipelines.train.checkpoint.save import FROZEN
from pipelines.train.checkpoint.tensor_file import TensorFile
from pipelines.train.settings import TrainJob
from tests.support.core.artifacts import write_training_data
from tests.support.train.jobs import changed, make_job
from tests.support.train.resume_workers import Check, check_restored
from tests.support.train.workers import Assignment, finish, start_group, start_workers

pytestmark = pytest.mark.slow
SPEC: dict[str, Any] = {
    "steps": 6,
    "sequences_per_step": 3,
    "videos_per_step": 2,
    "image_video_ratio": [2, 1],
    # Two groups of parameters at different rates, and the tower's stem, merger and norms frozen.
    "trains": {"language_model": True, "vision_blocks": 1},
    "learning_rate": 1.5e-3,
    "existing_learning_rate": 4e-4,
    "warmup_steps": 2,
    "decay_steps": 2,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "checkpoint_every": 3,
}
BF16 = {"train": {"precision": "bf16"}}
OFFLOAD: dict[str, Any] = {"offload": "parameters"}
Run = tuple[int, int, dict[str, Any]]
FIRST: dict[str, Run] = {
    "2-zero2": (2, 2, {}),
    "2-zero3": (2, 3, {}),
    "1-zero0": (1, 0, {}),
    "2-zero1-bf16": (2, 1, BF16),
    "2-zero2-bf16": (2, 2, BF16),
    "2-zero3-bf16": (2, 3, {**BF16, **OFFLOAD}),
}
"""Workers, ZeRO stage and settings of the runs that write checkpoints."""
ARRANGEMENTS: dict[str, Run] = {
    **FIRST,
    "1-zero1": (1, 1, {}),
    "1-zero3": (1, 3, {}),
    "2-zero0": (2, 0, {}),
    "3-zero2": (3, 2, {}),
    "3-zero3": (3, 3, {}),
    "3-zero3-bf16": (3, 3, BF16),
    "1-zero2-bf16": (1, 2, BF16),
    "2-zero3-offload": (2, 3, OFFLOAD),
    "1-zero2-offload": (1, 2, {"offload": "optimizer"}),
}
RESUMES = [
    *[("2-zero2", to) for to in ("2-zero2", "2-zero3", "1-zero0", "3-zero3", "1-zero2-offload")],
    *[("2-zero3", to) for to in ("2-zero3", "2-zero2", "1-zero1", "3-zero2", "2-zero3-offload")],
    *[("1-zero0", to) for to in ("2-zero0", "3-zero3", "1-zero3")],
    *[("2-zero1-bf16", to) for to in ("2-zero1-bf16", "3-zero3-bf16", "1-zero2-bf16")],
    *[("2-zero2-bf16", to) for to in ("2-zero2-bf16", "2-zero1-bf16")],
    *[("2-zero3-bf16", to) for to in ("2-zero3-bf16", "2-zero2-bf16")],
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    data = write_training_data(tmp_path_factory.mktemp("training"))
    return make_job(data, SPEC, seed=1)


def arranged(job: TrainJob, name: str, output: str | Path, **changes: Any) -> TrainJob:
    _, stage, settings = ARRANGEMENTS[name]
    return changed(job, output=output, zero_stage=stage, **settings, **changes)


@pytest.fixture(scope="module")
def runs(job: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs to the end, and every way to resume from half of them."""
    root = tmp_path_factory.mktemp("runs")
    first = {
        workers: [
            Assignment(arranged(job, name, root / name))
            for name, (own, *_) in FIRST.items()
            if own == workers
        ]
        for workers in (1, 2)
    }
    finish(*(start_workers(workers, work) for workers, work in first.items()))
    for workers in (1, 2, 3):
        again = [
            Assignment(arranged(job, to, root / f"{source}-then-{to}"), str(root / source))
            for source, to in RESUMES
            if ARRANGEMENTS[to][0] == workers
        ]
        finish(start_workers(workers, again))
    return root


@pytest.fixture(scope="module")
def reports(job: TrainJob, runs: Path) -> Path:
    """What each arrangement holds after restoring a checkpoint of another."""
    for workers in (1, 2, 3):
        checks = [
            Check(
                arranged(job, to, "", checkpoints=runs / source / "checkpoints"),
                str(runs / f"{source}-in-{to}.json"),
            )
            for source, to in RESUMES
            if ARRANGEMENTS[to][0] == workers
        ]
        finish(start_group(workers, check_restored, checks))
    return runs


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics.read_lines(run / metrics.FILE)]


@pytest.mark.parametrize(("source", "to"), RESUMES)
def test_every_weight_and_moment_is_restored_bit_for_bit(reports: Path, source: str, to: str):
    assert json.loads((reports / f"{source}-in-{to}.json").read_text()) == {"done": 6, "differing": []}


@pytest.mark.parametrize(("source", "to"), RESUMES)
def test_the_losses_are_those_of_the_uninterrupted_run(runs: Path, source: str, to: str):
    resumed = losses(runs / f"{source}-then-{to}")
    same_arithmetic = source == to
    half = "bf16" in to
    tolerance = 1e-6 if same_arithmetic else 1e-2 if half else 1e-5
    assert resumed == pytest.approx(losses(runs / source), rel=tolerance)
    assert resumed[:3] == losses(runs / source)[:3]


@pytest.mark.parametrize(("source", "to"), RESUMES)
def test_frozen_parameters_are_the_same_bits_at_the_end(runs: Path, source: str, to: str):
    before, after = (
        TensorFile(runs / name / "checkpoints" / FROZEN) for name in (source, f"{source}-then-{to}")
    )
    assert before.names() == after.names()
    assert any(name.startswith("vision_tower.stem") for name in before.names())
    for name in before.names():
        assert torch.equal(before.read(name), after.read(name)), name
