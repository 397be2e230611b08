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


def workers(session: local_ray.RaySession, named: str) -> list[psutil.Process]:
    """Processes with a word in their command line that ends so."""
    found = []
    for process in session_processes(session.session_id, Path(session.folder)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.endswith(named) for word in process.cmdline()):
                found.append(process)
    return found


# A worker that has no name yet; the agent, with which the raylet ends itself, and the head goes on without.
@pytest.mark.parametrize("killed", ["default_worker.py", "ray::DashboardAgent"])
def test_a_job_is_tried_again_soon_where_a_process_of_rays_is_killed_while_it_starts(
    killed: str, tmp_path: Path, session: local_ray.RaySession
):
    stages = plan([toy("one", "write_number", number=7)], tmp_path, {"write_number": "1"})
    notes, records = Notes(), Records(tmp_path)
    runner = Runner(stages, records, Cluster(RAY, records.session, tmp_path), notes)
    running = threading.Thread(target=runner.run, daemon=True)
    running.start()
    wait_until(lambda: workers(session, "default_worker.py"), 30, "the job's process")
    (process,) = workers(session, killed)
    process.kill()
    running.join(100)
    assert not running.is_alive()
    said = [line.split(":")[0].replace(stages[0].job_prefix, "") for line in notes.lines]
    assert [each for each in said if not each.startswith(("printed", "progress"))] == [
        "started 1",
        "retrying one",
        "started 2",
        "finished one",
    ]
    assert {kind for kind, _ in notes.waits} == {"lost"}
