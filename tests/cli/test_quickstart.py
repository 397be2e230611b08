"""The whole pipeline at a small size, and what is left of it after its processes are killed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from infra import local_ray
from infra.processes import session_processes
from tests.support.dag import quickstart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Stores whose Ray heads and endpoints are ended at the end."""
    used: list[Path] = []
    yield used
    for store in used:
        local_ray.stop(store / "session")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, stores: list[Path]) -> Path:
    """The store of a run that nothing disturbed."""
    store = tmp_path_factory.mktemp("whole")
    stores.append(store)
    quickstart.run(store, {"where.serve.port": "18231"})
    return store


def assert_same_result(store: Path, whole: Path) -> None:
    """Data byte for byte, weights to 1e-6, one line of metrics for each step."""
    ours, theirs = quickstart.manifests(store), quickstart.manifests(whole)
    for stage in ("corpus-vqa", "corpus-live", "clean-vqa", "clean-live", "pack"):
        assert ours[stage]["content_digest"] == theirs[stage]["content_digest"], stage
    weights, expected = (
        load_file(next(folder.glob("train/*/model/model.safetensors"))) for folder in (store, whole)
    )
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-6)
    metrics = next(store.glob("train/*/metrics.jsonl")).read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 61))


def test_a_second_run_does_nothing_and_only_what_a_setting_decides_is_redone(whole: Path):
    port = {"where.serve.port": "18231"}
    began = time.monotonic()
    output = quickstart.run(whole, port)
    assert time.monotonic() - began < 20
    assert "started" not in output

    def redone(setting: str, value: str) -> set[str]:
        return {
            name for name, cached in quickstart.plan(whole, port | {setting: value}).items() if not cached
        }

    assert redone("evaluate.frame_tolerance", "0") == {"evaluate", "report"}
    assert redone("train.learning_rate", "1e-3") == {"train", "evaluate", "deploy", "report"}
    for setting, value in (
        ("where.train.workers", "2"),
        ("where.train.zero_stage", "3"),
        ("where.data.workers", "1"),
        ("where.ray.object_store_mb", "300"),
        ("where.ray.num_cpus", "3"),
    ):
        assert redone(setting, value) == set(), setting


def test_moving_the_store_to_another_address_redoes_nothing(whole: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(whole)
    assert all(quickstart.plan(moved, {"where.serve.port": "18231"}).values())


@pytest.mark.parametrize("step", [3, 25])
def test_a_run_whose_runner_is_killed_continues_and_ends_with_the_same_weights(
    step: int, whole: Path, tmp_path: Path, stores: list[Path]
):
    stores.append(tmp_path)
    quickstart.kill_during_training(tmp_path, step, lambda runner: [runner])
    quickstart.run(tmp_path, {"where.serve.port": "18232"})
    local_ray.stop(tmp_path / "session")
    assert_same_result(tmp_path, whole)


def test_a_killed_training_worker_is_replaced_and_the_run_ends_with_the_same_weights(
    whole: Path, tmp_path: Path, stores: list[Path]
):
    stores.append(tmp_path)
    code = quickstart.kill_during_training(
        tmp_path,
        25,
        lambda _: quickstart.training_workers(tmp_path / "session")[:1],
        settings={"where.serve.port": "18233"},
    )
    assert code == 0
    local_ray.stop(tmp_path / "session")
    assert_same_result(tmp_path, whole)


def test_a_run_that_loses_its_runner_its_head_and_every_worker_continues_from_the_last_checkpoint(
    whole: Path, tmp_path: Path, stores: list[Path]
):
    stores.append(tmp_path)

    def everything(runner: int) -> list[int]:
        session = local_ray.read_session(tmp_path / "session")
        assert session is not None
        return [runner, session.pid, *quickstart.training_workers(tmp_path / "session")]

    quickstart.kill_during_training(tmp_path, 25, everything)
    output = quickstart.run(tmp_path, {"where.serve.port": "18234"})
    assert "pack" in output
    local_ray.stop(tmp_path / "session")
    assert_same_result(tmp_path, whole)


def test_stopping_leaves_no_process_of_the_run(whole: Path):
    session = local_ray.read_session(whole / "session")
    assert session is not None
    local_ray.stop(whole / "session")
    names = {process.pid: process.info["cmdline"] for process in psutil.process_iter(["cmdline"])}
    assert [pid for pid, words in names.items() if str(whole) in " ".join(words or [])] == []
    assert session_processes(session.session_id, Path(session.folder)) == []
