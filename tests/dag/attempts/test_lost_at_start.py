"""A job that is lost before it has begun."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import local_ray
from infra.processes import session_processes
from pipelines.dag.jobs import ROOT, Cluster
from pipelines.dag.plan import plan
from pipelines.dag.records import Records
from pipelines.dag.run import Runner
from tests.support.dag.runner import RAY, Notes, toy
from tests.support.serve.cluster import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local_ray.RaySession]:
    """A head that gives a job 5 s to start."""
    ours = float(local_ray.LOOPBACK_ENVIRONMENT["RAY_JOB_START_TIMEOUT_SECONDS"])
    assert ours < 300, "Ray's own are 900"
    monkeypatch.setitem(local_ray.LOOPBACK_ENVIRONMENT, "RAY_JOB_START_TIMEOUT_SECONDS", "5")
    folder = Records(tmp_path).session
    folder.mkdir(parents=True)
    yield local_ray.start(
        folder, num_cpus=RAY["num_cpus"], object_store_mb=RAY["object_store_mb"], python_path=ROOT
    )
    local_ray.stop(folder)


def starting(session: local_ray.RaySession) -> list[psutil.Process]:
    """Workers that have no name yet."""
    found = []
    for process in session_processes(session.session_id, Path(session.folder)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.endswith("default_worker.py") for word in process.cmdline()):
                found.append(process)
    return found


def test_a_job_whose_process_is_killed_while_it_starts_is_tried_again_soon(
    tmp_path: Path, session: local_ray.RaySession
):
    stages = plan([toy("one", "write_number", number=7)], tmp_path, {"write_number": "1"})
    notes, records = Notes(), Records(tmp_path)
    runner = Runner(stages, records, Cluster(RAY, records.session, tmp_path), notes)
    running = threading.Thread(target=runner.run, daemon=True)
    running.start()
    (worker,) = wait_until(lambda: starting(session), 30, "the job's process")
    worker.kill()
    running.join(60)
    assert not running.is_alive()
    assert [
        said for line in notes.lines if not (said := line.split(":")[0]).startswith(("printed", "progress"))
    ] == [
        f"started {stages[0].job_prefix}1",
        "retrying one",
        f"started {stages[0].job_prefix}2",
        "finished one",
    ]
    assert [kind for kind, _ in notes.waits] == ["lost"]
