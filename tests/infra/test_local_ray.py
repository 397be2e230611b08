"""The local Ray head: found again, on loopback only, and ended without a trace."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import local_ray
from infra.processes import session_processes
from tests.support.paths import ROOT

LISTENER = ROOT / "tests/support/dag/ray_listener.py"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Session folder of a head of the test's own."""
    yield tmp_path / "session"
    local_ray.stop(tmp_path / "session")


def start(folder: Path) -> local_ray.RaySession:
    return local_ray.start(folder, num_cpus=2, object_store_mb=80, python_path=ROOT)


def processes(session: local_ray.RaySession) -> list[psutil.Process]:
    return session_processes(session.session_id, Path(session.folder))


def busy(session: local_ray.RaySession) -> None:
    """Have the head run a job whose actor has started a process of its own."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(session.address)
    job = client.submit_job(entrypoint=f"{sys.executable} {LISTENER}")
    deadline = time.monotonic() + 60
    while "everything runs" not in client.get_job_logs(job):
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.1)


def test_a_second_start_finds_the_running_head(ray_folder: Path, ray_head: local_ray.RaySession):
    assert local_ray.start(ray_folder, num_cpus=4, object_store_mb=128) == ray_head
    assert local_ray.find(ray_folder) == ray_head


@pytest.mark.slow
def test_a_head_works_with_a_long_tmpdir_without_a_home_and_on_a_disk_that_ray_counts_as_full(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "0.01")
    busy(start(folder))


@pytest.mark.slow
def test_everything_of_a_busy_session_listens_on_loopback_only_and_ends_with_it(folder: Path):
    session = start(folder)
    busy(session)
    ours = {process.pid for process in processes(session)}
    listening = {
        (connection.pid, connection.laddr.ip)
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 5
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

    pids = {process.pid for process in processes(session)}
    assert set(local_ray.stop(folder)) >= pids
    assert processes(session) == []
    assert not any(is_running(pid) for pid in pids)
    assert not Path(session.folder).exists()
    assert local_ray.find(folder) is None
    assert local_ray.stop(folder) == []


@pytest.mark.slow
def test_what_a_killed_head_left_behind_is_ended_too(folder: Path):
    session = start(folder)
    busy(session)
    os.kill(session.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert local_ray.find(folder) is None
    left = {process.pid for process in processes(session)}
    assert left
    local_ray.stop(folder)
    assert not any(is_running(pid) for pid in left)


@pytest.mark.slow
def test_a_head_whose_session_file_was_removed_can_still_be_ended(folder: Path):
    session = start(folder)
    shutil.rmtree(folder)
    assert session.pid in local_ray.stop(folder)
    assert processes(session) == []


def test_a_head_is_ended_though_its_disk_is_full(small_disk: Path):
    session = start(small_disk)
    with (small_disk / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(bytes(4096)):
            pass
    assert session.pid in local_ray.stop(small_disk)
    assert not local_ray.is_running(session)


@pytest.mark.parametrize("torn", [b"", bytes(300), b'{"session_id": "a1b2', b"[]", b'{"pid": 1}'])
def test_a_torn_session_file_counts_as_absent_and_is_cleared(tmp_path: Path, caplog, torn: bytes):
    (tmp_path / local_ray.SESSION_FILE).write_bytes(torn)
    assert local_ray.find(tmp_path) is None
    assert f"{tmp_path / local_ray.SESSION_FILE} is damaged and counts as absent" in caplog.text
    assert local_ray.stop(tmp_path) == []
    assert not (tmp_path / local_ray.SESSION_FILE).exists()


@pytest.mark.slow
def test_a_head_whose_session_file_is_torn_is_ended_on_purpose(folder: Path):
    session = start(folder)
    (folder / local_ray.SESSION_FILE).write_bytes(b"")
    assert session.pid in local_ray.stop(folder)
    assert local_ray.was_stopped(folder, session.session_id)


@pytest.mark.slow
def test_temporary_files_of_a_killed_job_go_with_the_session(folder: Path):
    from ray.job_submission import JobSubmissionClient

    session = start(folder)
    client = JobSubmissionClient(session.address)
    code = (
        "import multiprocessing.util, os; "
        "print('made', multiprocessing.util.get_temp_dir(), flush=True); os.kill(os.getpid(), 9)"
    )
    job = client.submit_job(entrypoint=f"{sys.executable} -c {shlex.quote(code)}")
    deadline = time.monotonic() + 60
    while client.get_job_status(job).value not in ("FAILED", "SUCCEEDED"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (made,) = [line for line in client.get_job_logs(job).splitlines() if line.startswith("made ")]
    left = Path(made.removeprefix("made "))
    assert left.name.startswith("pymp-")
    assert left.is_dir()
    local_ray.stop(folder)
    assert not left.exists()


def test_another_program_of_the_same_user_is_left_alone(tmp_path: Path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        local_ray.stop(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
