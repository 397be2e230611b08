"""Runs, `casa status` and `casa stop` on clusters that others use too, or that do not answer."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import CasaError, ClusterError
from infra import ray_clients
from infra.local_ray import RaySession
from infra.ray_errors import Unreachable
from pipelines.cli.shared import run_handle
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import plan
from pipelines.dag.records import Records
from pipelines.dag.run import Runner, StageFailed
from pipelines.dag.shared_names import serve_application
from tests.support.dag.runner import RAY, Notes, gated, remote, toy
from tests.support.http_servers import VERSION, answering, silent
from tests.support.serve.cluster import wait_until


class WatchedRun:
    """A run of the stages that wait for a gate, watched by a thread; its store's records name ``address``."""

    def __init__(self, store: Path, session: Path, address: str) -> None:
        store.mkdir()
        self.store, self.records, self.notes = store, Records(store), Notes()
        self.cluster = Cluster(RAY, session, store)
        self.error: CasaError | None = None
        stages = plan(gated(store), store, {"wait_for_gate": "1", "count_inputs": "1"})
        self.records.prepare()
        self.records.write_run("gated", {**RAY, "address": address}, "http://127.0.0.1:9", stages)
        self._runner = Runner(stages, self.records, self.cluster, self.notes)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: (store / "starts.txt").exists(), 60, "the job")

    def _run(self) -> None:
        try:
            self._runner.run()
        except CasaError as error:
            self.error = error

    def wait(self) -> None:
        """Wait for the runner's end."""
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    @property
    def starts(self) -> int:
        """How often the waiting stage began."""
        return len((self.store / "starts.txt").read_text().splitlines())


@pytest.mark.slow
def test_a_stop_ends_its_own_stores_run_and_no_others(tmp_path: Path, ray_folder: Path, ray_head: RaySession):
    ours, theirs = (WatchedRun(tmp_path / name, ray_folder, ray_head.address) for name in ("ours", "theirs"))
    assert ours.cluster.active_jobs() == theirs.cluster.active_jobs(), "the same recipe: the same stage"
    [job_id] = ours.cluster.active_jobs()

    assert run_handle.stop_run(ours.store) == {"processes": [], "jobs": [job_id]}
    assert ours.cluster.state(job_id) == "stopped"
    assert theirs.cluster.state(job_id) == "active"
    ours.wait()
    assert isinstance(ours.error, ClusterError)
    assert ours.error.what == "The run was stopped."
    assert ours.starts == 1

    (theirs.store / "gate").touch()
    theirs.wait()
    assert theirs.error is None
    assert theirs.starts == 1
    assert theirs.notes.lines[-1] == "finished after"

    (ours.store / "gate").touch()
    stages = plan(gated(ours.store), ours.store, {"wait_for_gate": "1", "count_inputs": "1"})
    again = Notes()
    assert Runner(stages, ours.records, ours.cluster, again).run().keys() == {"slow", "after"}
    assert f"started {job_id[:-1]}2" in again.lines


def test_a_stop_between_two_stages_keeps_the_second_from_starting(
    tmp_path: Path, ray_folder: Path, ray_head: RaySession
):
    run = WatchedRun(tmp_path / "store", ray_folder, ray_head.address)
    run.records.record_stop()  # as by a machine that has not seen the first stage's job any more
    (run.store / "gate").touch()
    run.wait()
    assert isinstance(run.error, ClusterError)
    assert run.error.what == "The run was stopped."
    assert "finished slow" in run.notes.lines
    assert not any(line.startswith("started after") for line in run.notes.lines)


@pytest.mark.parametrize("beside", [[], ["casa-0badc0de"]])
def test_a_stop_removes_its_own_stores_endpoint_only(tmp_path: Path, beside: list[str]):
    def applications(*names: str) -> str:
        listed = {name: {"deployed_app_config": {"name": name}} for name in names}
        return json.dumps({"applications": listed})

    own = serve_application(tmp_path)
    for names, writes in (([own, *beside], ["PUT" if beside else "DELETE"]), (beside, [])):
        body = applications(*names)
        with answering(lambda method, path, b=body: (200, VERSION if "version" in path else b)) as (url, had):
            Cluster(remote(url), tmp_path, tmp_path).end_serving()
        assert [request.split()[0] for request in had if not request.startswith("GET")] == writes


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("ModuleNotFoundError: No module named 'pipelines'", "does not have this project.*where.ray.code"),
        ("ModuleNotFoundError: No module named 'deepspeed'", "lacks the package deepspeed.*all nodes"),
        ("/bin/sh: 1: exec: python: not found", "find no Python.*on PATH"),
        ("sh: python: command not found", "find no Python.*on PATH"),
    ],
)
def test_a_job_that_cannot_begin_is_not_tried_again_and_its_remedy_named(tmp_path: Path, log: str, says: str):
    stages = plan([toy("one", "write_number", number=1)], tmp_path, {"write_number": "1"})
    with answering(partial(_jobs_that_fail, log)) as (address, requests):
        cluster = Cluster(remote(address), tmp_path / "session", tmp_path)
        with pytest.raises(StageFailed) as raised:
            within(20, Runner(stages, Records(tmp_path), cluster, Notes()).run)
    assert re.search(says, f"{raised.value.why} {raised.value.remedy}")
    assert sum(request == "POST /api/jobs/" for request in requests) == 1


def _jobs_that_fail(log: str, method: str, path: str) -> tuple[int, str]:
    if "version" in path:
        return 200, VERSION
    if method == "POST":
        return 200, json.dumps({"job_id": "one", "submission_id": "one"})
    if path.endswith("/logs"):
        return 200, json.dumps({"logs": f"Traceback (most recent call last):\n{log}"})
    job = {"type": "SUBMISSION", "submission_id": "one", "job_id": None, "status": "FAILED"}
    return 200, json.dumps({**job, "entrypoint": "", "message": "exit code 1"})


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_run_leaves_the_cluster_that_the_environment_names_alone(
    variable: str, tmp_path: Path, ray_folder: Path, ray_head: RaySession, monkeypatch: pytest.MonkeyPatch
):
    with answering(lambda method, path: (200, VERSION)) as (foreign, requests):
        monkeypatch.setenv(variable, foreign)
        stages = plan([toy("one", "write_number", number=1)], tmp_path, {"write_number": "1"})
        cluster = Cluster(RAY, ray_folder, tmp_path)
        Runner(stages, Records(tmp_path), cluster, Notes()).run()
        Records(tmp_path).write_run("toy", {**RAY, "address": ray_head.address}, "http://127.0.0.1:9", stages)
        state = run_handle.run_state(run_handle.latest_run(tmp_path))
        run_handle.stop_run(tmp_path)
    assert (state["ray"], state["stages"][0]["state"]) == (ray_head.address, "done")
    assert requests == []


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """What an action gives, in time."""
    began = time.monotonic()
    try:
        return action()
    finally:
        assert time.monotonic() - began < seconds


def test_a_cluster_that_accepts_and_never_answers_ends_each_command_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_clients, "ANSWER_S", 1.0)
    stages = plan([toy("one", "write_number", number=1)], tmp_path, {"write_number": "1"})
    records = Records(tmp_path)
    records.prepare()
    with silent() as address:
        records.write_run("toy", {**RAY, "address": address}, address, stages)
        cluster = Cluster(remote(address), records.session, tmp_path)
        named = rf"Ray cluster at {address} does not answer.*\n.*\n.*where\.ray\.address"
        with pytest.raises(Unreachable, match=named):
            within(10, Runner(stages, records, cluster, Notes()).run)
        state = within(10, lambda: run_handle.run_state(run_handle.latest_run(tmp_path)))
        assert (state["ray"], state["endpoint"]) == (None, None)
        assert f"{address} does not answer" in state["ray_problem"]
        with pytest.raises(Unreachable, match=named):
            within(10, lambda: run_handle.stop_run(tmp_path))
