"""Killing the runner, and killing Ray: the next run goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import local_ray
from pipelines.dag.jobs import Cluster
from tests.support.dag.runner import RAY, Notes, gated, make_runner
from tests.support.paths import ROOT


def start_runner(store: Path, session: Path) -> tuple[subprocess.Popen[str], str]:
    """A runner in a process of its own, once its first job has begun; returns the job's id too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.dag.runner", str(store), str(session)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    job_id = process.stdout.readline().split()[1]
    wait_until(lambda: (store / "starts.txt").exists())
    return process, job_id


def wait_until(condition, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_runner_leaves_its_job_running_and_the_next_one_watches_it(
    tmp_path: Path, ray_folder: Path, ray_head: local_ray.RaySession
):
    process, job_id = start_runner(tmp_path, ray_folder)
    kill(process)
    assert Cluster(RAY, ray_folder, tmp_path).state(job_id) == "active"
    assert not list(tmp_path.glob("wait_for_gate/*/manifest.json"))

    (tmp_path / "gate").touch()
    notes = Notes()
    manifests = make_runner(gated(tmp_path), tmp_path, ray_folder, notes).run()
    assert f"attached {job_id}" in notes.lines or "cached slow" in notes.lines
    assert len((tmp_path / "starts.txt").read_text().splitlines()) == 1
    assert manifests["after"]["summary"] == {"files": 2}


@pytest.fixture
def own_session(tmp_path: Path) -> Iterator[Path]:
    """Session folder of a head that only this test uses, because it is going to kill it."""
    folder = tmp_path / "session"
    yield folder
    local_ray.stop(folder)


@pytest.mark.slow
def test_after_ray_was_killed_the_next_run_starts_a_head_and_the_stage_again(
    tmp_path: Path, own_session: Path
):
    process, job_id = start_runner(tmp_path, own_session)
    head = local_ray.read_session(own_session)
    assert head is not None
    kill(process)
    driver = int((tmp_path / "starts.txt").read_text())
    os.kill(head.pid, signal.SIGKILL)

    (tmp_path / "gate").touch()
    notes = Notes()
    manifests = make_runner(gated(tmp_path), tmp_path, own_session, notes).run()
    assert not psutil.pid_exists(driver) or psutil.Process(driver).status() == psutil.STATUS_ZOMBIE
    assert manifests["after"]["summary"] == {"files": 2}
    assert local_ray.read_session(own_session) != head
    if "cached slow" not in notes.lines:  # The orphan may have ended by itself before it was found.
        assert f"started {job_id[:-1]}2" in notes.lines


@pytest.mark.slow
def test_a_runner_outlives_its_ray_head(tmp_path: Path, own_session: Path):
    process, _ = start_runner(tmp_path, own_session)
    head = local_ray.read_session(own_session)
    assert head is not None
    os.kill(head.pid, signal.SIGKILL)
    wait_until(lambda: len((tmp_path / "starts.txt").read_text().splitlines()) == 2)
    (tmp_path / "gate").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "retrying slow" in output
    assert output.splitlines()[-1] == "finished after"


@pytest.mark.slow
def test_a_runner_does_not_bring_back_what_was_stopped(tmp_path: Path, own_session: Path):
    process, _ = start_runner(tmp_path, own_session)
    assert local_ray.stop(own_session)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "finished after" not in output
    assert local_ray.read_session(own_session) is None
    assert not local_ray.sessions_of(own_session)
