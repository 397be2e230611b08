"""The runner, on a real Ray head with real jobs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ClusterError
from infra import ray_clients
from infra.local_ray import RaySession
from pipelines.dag import artifact
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import StageSpec, plan
from pipelines.dag.records import Records
from pipelines.dag.run import StageFailed
from pipelines.waits import Announcer
from tests.support.dag.runner import STAGES, Notes, gated, make_runner, remote, toy
from tests.support.serve.cluster import wait_until

pytestmark = pytest.mark.usefixtures("ray_head")


def test_a_chain_runs_once_and_is_cached_afterwards(tmp_path: Path, ray_folder: Path):
    stages = [toy("one", "write_number", number=1), toy("two", "write_number", {"x": "one"}, number=10)]
    notes = Notes()
    manifests = make_runner(stages, tmp_path, ray_folder, notes).run()
    assert manifests["two"]["summary"] == {"number": 11}
    assert manifests["two"]["inputs"] == {"x": manifests["one"]["fingerprint"]}
    assert "progress two 1/1 written" in notes.lines
    assert "printed two the number is 11" in notes.lines
    for manifest in manifests.values():
        assert artifact.verify(tmp_path / manifest["kind"] / manifest["fingerprint"]) == []

    again = Notes()
    # No cluster is needed for what is done: this one does not exist.
    assert make_runner(stages, tmp_path, tmp_path / "no-session", again).run() == manifests
    assert again.lines == ["cached one", "cached two"]
    assert not (tmp_path / "no-session").exists()


def test_a_job_has_a_readable_id_and_leaves_its_log_in_the_store(tmp_path: Path, ray_folder: Path):
    notes = Notes()
    manifest = make_runner([toy("named", "write_number", number=1)], tmp_path, ray_folder, notes).run()[
        "named"
    ]
    job_id = f"named-{manifest['fingerprint'][:12]}-a1"
    assert notes.lines[0] == f"started {job_id}"
    assert manifest["provenance"]["job_id"] == job_id
    assert "the number is 1" in Records(tmp_path).log_path(job_id).read_text()


def test_independent_stages_run_at_the_same_time(tmp_path: Path, ray_folder: Path):
    stages = [toy("left", "meet", other="right"), toy("right", "meet", other="left")]
    assert make_runner(stages, tmp_path, ray_folder, Notes()).run().keys() == {"left", "right"}


def test_a_killed_job_is_tried_again_and_finds_its_files(tmp_path: Path, ray_folder: Path):
    notes = Notes()
    manifest = make_runner([toy("mortal", "die_once")], tmp_path, ray_folder, notes).run()["mortal"]
    assert manifest["summary"] == {"resumed_from": "step 7"}
    assert any(line.startswith("retrying mortal: ") and "signal 9 (SIGKILL)" in line for line in notes.lines)
    assert any(line.startswith("started mortal-") and line.endswith("-a2") for line in notes.lines)


def test_a_head_that_takes_no_jobs_yet_is_waited_for(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    refusals = refuse(monkeypatch, "POST", "No available agent to submit job, please try again later.", 3)
    monkeypatch.setattr(ray_clients, "BUSY_S", 0.0)  # it is the runner that waits
    notes = Notes()
    manifests = make_runner([toy("one", "write_number", number=1)], tmp_path, ray_folder, notes).run()
    assert manifests["one"]["summary"] == {"number": 1}
    assert next(refusals, None) is None


def test_a_head_that_starts_on_a_busy_machine_is_waited_for_and_named(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Its answers come late or are errors, in turn: neither bound is one for a head that has yet to start."""
    refuse(monkeypatch, "POST", "No available agent to submit job, please try again later.", 3)
    monkeypatch.setattr(ray_clients, "BUSY_S", 0.0)
    for bound in ("BUSY_S", "UNREACHABLE_S"):
        monkeypatch.setattr(f"pipelines.dag.run.{bound}", 0.0)
    runner = make_runner([toy("one", "write_number", number=1)], tmp_path, ray_folder, Notes())
    runner._cluster._answer = Announcer("Waiting for Ray", first_s=0.1, every_s=0.1)
    assert runner.run()["one"]["summary"] == {"number": 1}
    assert "Waiting for Ray, after" in capsys.readouterr().err


def test_a_head_that_takes_no_jobs_at_all_ends_the_run_with_what_to_do(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    refuse(monkeypatch, "POST", "No available agent to submit job, please try again later.", 1000)
    monkeypatch.setattr(ray_clients, "BUSY_S", 0.0)
    monkeypatch.setattr("pipelines.dag.run.STARTING_S", 2.0)
    with pytest.raises(ClusterError, match=r"takes no requests.*\n.*No available agent.*\n.*Run again"):
        make_runner([toy("one", "write_number", number=1)], tmp_path, ray_folder, Notes()).run()


def test_a_job_that_waits_to_begin_is_shown_with_rays_reason(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.dag.run.WAIT_SHOWN_S", 0.0)
    notes = Notes()
    make_runner([toy("one", "write_number", number=1)], tmp_path, ray_folder, notes).run()
    waits = [line for line in notes.lines if "has not begun after 0 s: Job has not started yet." in line]
    assert waits
    assert notes.lines[-1] == "finished one"


def test_a_job_whose_submission_was_answered_with_an_error_is_not_submitted_twice(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import requests

    request, lost = requests.request, iter([True])

    def cut_off(method: str, url: str, **arguments: Any) -> requests.Response:
        answer = request(method, url, **arguments)
        if method == "POST" and next(lost, False):
            answer.status_code, answer._content = 502, b"the answer was lost on the way"
        return answer

    monkeypatch.setattr(requests, "request", cut_off)
    notes = Notes()
    stages = gated(tmp_path)[:1]
    threading.Timer(5, (tmp_path / "gate").touch).start()
    make_runner(stages, tmp_path, ray_folder, notes).run()
    assert next(lost, None) is None
    assert [line for line in notes.lines if line.startswith("started")] == [
        f"started slow-{plan(stages, tmp_path, {'wait_for_gate': '1'})[0].fingerprint[:12]}-a1"
    ]
    assert len((tmp_path / "starts.txt").read_text().splitlines()) == 1


def refuse(monkeypatch: pytest.MonkeyPatch, method: str, text: str, times: int) -> Iterator[str]:
    """Have the head answer the next requests of a method with 500; what is left of the refusals."""
    import requests

    request, refusals = requests.request, iter([text] * times)

    def overloaded(given: str, url: str, **arguments: Any) -> requests.Response:
        if given != method or (refusal := next(refusals, None)) is None:
            return request(given, url, **arguments)
        answer = requests.Response()
        answer.status_code, answer._content = 500, refusal.encode()
        return answer

    monkeypatch.setattr(requests, "request", overloaded)
    return refusals


def test_a_killed_job_without_retries_left_fails(tmp_path: Path, ray_folder: Path):
    with pytest.raises(StageFailed, match="mortal failed"):
        make_runner([toy("mortal", "die_once")], tmp_path, ray_folder, Notes(), retries=0).run()
    assert not list(tmp_path.glob("die_once/*/manifest.json"))


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_is_made_by_one_command(tmp_path: Path, ray_folder: Path):
    stage = toy("mortal", "die_often", times=3)
    notes = Notes()
    assert make_runner([stage], tmp_path, ray_folder, notes).run()["mortal"]["summary"] == {"killed": 3}
    assert sum(line.startswith("retrying") for line in notes.lines) == 3


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_a_connection_that_a_stage_lost_is_tried_again(library: str, tmp_path: Path, ray_folder: Path):
    """Neither library's error derives from `ConnectionError`."""
    notes, stage = Notes(), toy("lost", "lose_connection", library=library)
    assert make_runner([stage], tmp_path, ray_folder, notes).run()["lost"]["summary"] == {"attempts": 2}
    assert sum(line.startswith("retrying lost: ") for line in notes.lines) == 1


def test_an_error_of_the_cluster_that_comes_back_is_no_accident(tmp_path: Path, ray_folder: Path):
    notes, stage = Notes(), toy("missed", "miss_cluster", errors=["The head was lost.", "The port is taken."])
    with pytest.raises(StageFailed, match=r"failed after 3 attempts.*\n.*The port is taken"):
        make_runner([stage], tmp_path, ray_folder, notes).run()
    retried = [line.partition(": ")[2] for line in notes.lines if line.startswith("retrying")]
    assert retried == ["The head was lost.", "The port is taken."]


def test_a_failing_stage_stops_what_follows_and_shows_its_log(tmp_path: Path, ray_folder: Path):
    stages = [toy("broken", "fail", zero=0), toy("next", "count_inputs", {"x": "broken"})]
    notes = Notes()
    with pytest.raises(StageFailed) as caught:
        make_runner(stages, tmp_path, ray_folder, notes).run()
    assert "Stage broken failed" in caught.value.what
    assert "ZeroDivisionError" in caught.value.why
    assert "about to divide" in caught.value.why
    assert "casa logs broken" in caught.value.remedy
    # A bug is not lost work: it is not tried again, and nothing was built on it.
    assert [line.split()[0] for line in notes.lines if not line.startswith("printed")] == [
        "started",
        "failed",
    ]


def test_a_refused_setting_arrives_with_what_why_and_remedy(tmp_path: Path, ray_folder: Path):
    with pytest.raises(StageFailed) as caught:
        make_runner([toy("odd", "refuse")], tmp_path, ray_folder, Notes()).run()
    assert "The number is odd." in caught.value.why
    assert caught.value.remedy == "use 4"


def test_a_stage_function_that_does_not_exist_is_named(tmp_path: Path, ray_folder: Path):
    stage = StageSpec(name="gone", kind="gone", settings={}, function="pipelines.nowhere:run_stage")
    with pytest.raises(StageFailed, match=r"no stage function pipelines\.nowhere:run_stage"):
        make_runner([stage], tmp_path, ray_folder, Notes()).run()


def test_two_runners_share_one_job(tmp_path: Path, ray_folder: Path):
    stages = [toy("left", "meet", other="right"), toy("right", "meet", other="left")]
    notes = [Notes(), Notes()]
    runners = [make_runner(stages, tmp_path, ray_folder, each) for each in notes]
    threads = [threading.Thread(target=each.run) for each in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(list(Records(tmp_path).jobs.glob("*.log"))) == 2
    assert len(list(tmp_path.glob("meet/*/manifest.json"))) == 2


@pytest.mark.slow
def test_a_state_is_brought_about_once_and_again_when_it_is_gone(tmp_path: Path, ray_folder: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stage = StageSpec(
        name="answer",
        kind="answer",
        settings={},
        placement={"port": port},
        function=f"{STAGES}:answer",
        state=True,
        check=f"{STAGES}:check_answer",
    )
    first = Notes()
    pid = make_runner([stage], tmp_path, ray_folder, first).run()["answer"]["summary"]["pid"]
    second = Notes()
    summary = make_runner([stage], tmp_path, tmp_path / "no-session", second).run()["answer"]["summary"]
    assert summary == {"port": port}
    assert second.lines == ["cached answer"]

    (manifest,) = tmp_path.glob("answer/*/manifest.json")
    manifest.unlink()  # as where the job was killed before it recorded what it had brought about
    recording = Notes()
    summary = make_runner([stage], tmp_path, ray_folder, recording).run()["answer"]["summary"]
    assert summary == {"port": port}
    assert [line.split()[0] for line in recording.lines] == ["started", "finished"]
    assert manifest.exists()

    os.kill(pid, signal.SIGKILL)
    third = Notes()
    pid = make_runner([stage], tmp_path, ray_folder, third).run()["answer"]["summary"]["pid"]
    assert third.lines[-1] == "finished answer"
    os.kill(pid, signal.SIGKILL)


def test_a_stopped_job_is_not_started_again(tmp_path: Path, ray_folder: Path, ray_head: RaySession):
    """As by Ray's dashboard, or `ray job stop`."""
    stage, notes = gated(tmp_path)[0], Notes()
    cluster = Cluster(remote(ray_head.address), ray_folder, tmp_path)

    def stop() -> None:
        wait_until(lambda: (tmp_path / "starts.txt").exists(), 60, "the job")
        [job_id] = cluster.active_jobs()
        cluster.stop(job_id)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(
        StageFailed, match=r"Stage slow was stopped.*\n.*intentionally stopped.*\n.*Run again"
    ):
        make_runner([stage], tmp_path, ray_folder, notes).run()
    stopper.join()
    assert len((tmp_path / "starts.txt").read_text().splitlines()) == 1
    assert [line.split()[0] for line in notes.lines if "progress" not in line] == ["started", "failed"]


def test_ray_knows_the_job_and_refuses_its_id_a_second_time(
    tmp_path: Path, ray_folder: Path, ray_head: RaySession
):
    notes = Notes()
    make_runner([toy("one", "write_number", number=5)], tmp_path, ray_folder, notes).run()
    job_id = notes.lines[0].split()[1]
    cluster = Cluster(remote(ray_head.address), ray_folder, tmp_path)
    wait_until(lambda: cluster.state(job_id) == "succeeded", 30, "Ray's notice of its end")
    assert cluster.state("never-heard-of") is None
    import json

    from pipelines.dag.records import JobSpec

    path = Records(tmp_path).spec_path(job_id)
    with pytest.raises(ClusterError, match="already exists"):
        cluster.submit(JobSpec(**json.loads(path.read_text())), path)


def test_a_cluster_that_is_not_there_is_reported_at_once(tmp_path: Path):
    from pipelines.dag.run import Runner

    stages = plan([toy("one", "write_number", number=1)], tmp_path, {"write_number": "1"})
    cluster = Cluster(remote("http://127.0.0.1:9"), tmp_path, tmp_path)
    with pytest.raises(ClusterError, match="does not answer"):
        Runner(stages, Records(tmp_path), cluster, Notes()).run()
