"""A run on several Ray nodes: one is lost, one comes, and the training is that of the uninterrupted run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from pipelines.train import metrics
from pipelines.train.checkpoint.save import FROZEN
from pipelines.train.checkpoint.tensor_file import TensorFile
from pipelines.train.settings import TrainJob
from tests.support.core.artifacts import write_training_data
from tests.support.train.jobs import changed, make_job
from tests.support.train.workers import Assignment, finish, start_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(450)]
SPEC: dict[str, Any] = {
    "steps": 120,
    "sequences_per_step": 90,  # half a second a step: a node takes up to 20 s to start and be taken in
    "videos_per_step": 30,
    "image_video_ratio": [3, 1],
    "trains": {"language_model": True, "vision_blocks": 1},
    "learning_rate": 2e-4,
    "warmup_steps": 10,
    "decay_steps": 40,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "checkpoint_every": 5,
}
ALONE = ["unshare", "--net", "--map-root-user"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    data = write_training_data(tmp_path_factory.mktemp("training"), questions=60, clips=12)
    return make_job(data, SPEC, seed=1)


@pytest.fixture(scope="module")
def whole(job: TrainJob, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The uninterrupted run under each ZeRO stage, without Ray."""
    outputs = {stage: tmp_path_factory.mktemp(f"whole-{stage}") for stage in (2, 3)}
    runs = [changed(job, output=output, zero_stage=stage) for stage, output in outputs.items()]
    finish(start_workers(2, [Assignment(run) for run in runs]))
    return outputs


def train_in_cluster(
    folder: Path, job: TrainJob, *, nodes: int, events: list[tuple[str, int, int]], **placement: Any
) -> tuple[list[dict[str, Any]], str]:
    """Metrics of a run in a cluster that loses and gains nodes, and what was done to it."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("needs network namespaces, to keep a cluster of several nodes on loopback")
    script = {
        "job": pydantic.TypeAdapter(TrainJob).dump_python(
            changed(job, output=folder / "output", **placement), mode="json"
        ),
        "nodes": nodes,
        "events": events,
    }
    (folder / "output").mkdir(parents=True)
    (folder / "script.json").write_text(json.dumps(script))
    program = (
        f"ip link set lo up && exec {sys.executable} -m tests.support.train.cluster {folder}/script.json"
    )
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "CASA_ELASTIC_SECONDS": "2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "TMPDIR": "/tmp",
    }
    ended = subprocess.run(
        [*ALONE, "sh", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    print(ended.stdout[-3000:], ended.stderr[-6000:])
    assert ended.returncode == 0
    return metrics.read_lines(folder / "output" / metrics.FILE), ended.stdout


def same_training(lines: list[dict[str, Any]], whole: Path, tolerance: float) -> None:
    expected = metrics.read_lines(whole / metrics.FILE)
    assert [line["step"] for line in lines] == list(range(1, SPEC["steps"] + 1))
    for name in ("batch", "kind", "text_tokens", "image_tokens", "trained_tokens"):
        assert [line[name] for line in lines] == [line[name] for line in expected], name
    apart = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(lines, expected, strict=True)]
    told = "\n".join(
        f"step {line['step']}, {line['workers']} workers, {line['seconds']:.1f} s: loss {off:.1e} apart"
        for line, off in zip(lines, apart, strict=True)
    )
    assert max(apart) < tolerance, told


def same_frozen(output: Path, whole: Path) -> None:
    mine, theirs = (TensorFile(folder / "checkpoints" / FROZEN) for folder in (output, whole))
    assert mine.names() == theirs.names() != []
    assert all(torch.equal(mine.read(name), theirs.read(name)) for name in mine.names())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_node_that_is_killed_is_replaced_and_the_run_is_the_uninterrupted_one(
    job: TrainJob, whole: dict[int, Path], tmp_path: Path, stage: int
):
    lines, printed = train_in_cluster(
        tmp_path, job, nodes=2, events=[("kill", 40, 2), ("add", 0, 2)], zero_stage=stage
    )
    assert "kill after" in printed
    same_training(lines, whole[stage], 1e-6)
    same_frozen(tmp_path / "output", whole[stage])


def test_a_run_of_two_to_four_takes_in_a_third_node_and_goes_on_after_losing_one(
    job: TrainJob, whole: dict[int, Path], tmp_path: Path
):
    lines, printed = train_in_cluster(
        tmp_path, job, nodes=2, events=[("add", 10, 2), ("kill", 12, 3)], workers=[2, 4]
    )
    assert "kill after" in printed
    sizes = [line["workers"] for line in lines]
    changes = [sizes[0], *(now for before, now in pairwise(sizes) if now != before)]
    assert changes == [2, 3, 2]
    same_training(lines, whole[2], 1e-5)
    same_frozen(tmp_path / "output", whole[2])
