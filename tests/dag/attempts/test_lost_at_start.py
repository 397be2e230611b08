"""A job that is lost before it has begun."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from casa_core.errors import ClusterError
from infra import local_ray
from infra.processes import session_processes
from pipelines.dag.jobs import ROOT, Cluster
from pipelines.dag.plan import plan
from pipelines.dag.records import Records
from pipelines.dag.run import Runner
from tests.support.dag.runner import RAY, Notes, remote, toy
from tests.support.serve.cluster import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def session(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[local_ray.RaySession]:
    """A head that gives a job 5 s to start, or as many as the test asks for."""
    ours = float(local_ray.LOOPBACK_ENVIRONMENT["RAY_JOB_START_TIMEOUT_SECONDS"])
    assert ours < 300, "Ray's own are 900"
    monkeypatch.setitem(
        local_ray.LOOPBACK_ENVIRONMENT, "RAY_JOB_START_TIMEOUT_SECONDS", getattr(request, "param", "5")
    )
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


@pytest.mark.parametrize("session", ["900"], indirect=True)
def test_a_head_that_no_node_runs_beside_ends_the_run_with_what_to_do(
    tmp_path: Path, session: local_ray.RaySession, monkeypatch: pytest.MonkeyPatch
):
    """A head that is not ours to replace, as one that `ray start --block` started."""
    monkeypatch.setattr("pipelines.dag.run.WAIT_SHOWN_S", 1.0)
    monkeypatch.setattr("pipelines.dag.run.UNREACHABLE_S", 3.0)
    stages = plan([toy("one", "write_number", number=7)], tmp_path, {"write_number": "1"})
    notes, records, problems = Notes(), Records(tmp_path), []
    cluster = Cluster(remote(session.address), records.session, tmp_path)
    runner = Runner(stages, records, cluster, notes)

    def run() -> None:
        try:
            runner.run()
        except ClusterError as error:
            problems.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    wait_until(lambda: workers(session, "default_worker.py"), 30, "the job's process")
    (agent,) = workers(session, "ray::DashboardAgent")
    agent.kill()
    running.join(100)
    assert not running.is_alive()
    assert any("has not begun after" in line for line in notes.lines)
    (problem,) = problems
    assert problem.what == "No node of the Ray cluster is alive, its head's neither."
    assert "DEAD" in problem.why
    assert "dashboard_agent failed" in problem.why
