"""Which failures are tried again, how often and after which wait, and what a run says when it gives up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ClusterError
from pipelines.cli.show.watch import JsonWatcher, PlainWatcher
from pipelines.dag.attempts import kinds
from pipelines.dag.attempts.kinds import RETRIES, Attempts, FailureKind
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import Outcome, Records
from pipelines.dag.run import Runner, StageFailed
from tests.support.dag.job_server import StandIn, ask, job_server
from tests.support.dag.random_dag import RandomDag
from tests.support.dag.runner import STAGES, Notes, gated
from tests.support.serve.cluster import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with job_server() as path:
        yield path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of some milliseconds, which differ by kind as the real ones do."""
    for kind, each in RETRIES.items():
        monkeypatch.setitem(kinds.RETRIES, kind, replace(each, first_s=each.first_s / 100))


def runner(stages: list[PlannedStage], store: Path, server: str, notes: Any, **options: Any) -> Runner:
    return Runner(stages, Records(store), StandIn(server, store), notes, **options)


def failed(kind: FailureKind, what: str = "", *, explained: bool = False) -> Outcome:
    return Outcome(ok=False, kind=kind, what=what, explained=explained)


@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        ("lost", [1, 2, 4, 8, 16, 32, 60, 60, None]),
        ("store", [5, 10, 20, 40, 80, 120, 120, 120, None]),
        ("memory", [10, None]),
        ("timeout", [1, None]),
        ("error", [None]),
    ],
)
def test_each_kind_has_its_number_of_attempts_and_waits_twice_as_long_each_time(
    kind: FailureKind, waits: list[float | None]
):
    attempts = Attempts(retries=8)
    assert [attempts.wait_s("train", failed(kind)) for _ in waits] == waits
    assert attempts.made("train") == len(waits)
    assert attempts.made("clean") == 0


@pytest.mark.parametrize("kind", sorted(RETRIES))
def test_without_retries_nothing_is_tried_again(kind: FailureKind):
    assert Attempts(retries=0).wait_s("train", failed(kind)) is None


def test_kinds_are_counted_apart_and_a_job_without_an_outcome_was_lost():
    attempts = Attempts(retries=1)
    waits = [attempts.wait_s("train", outcome) for outcome in (None, failed("store"), Outcome(ok=True))]
    assert waits == [1, 5, None]


def test_an_error_that_explains_itself_and_comes_back_is_no_accident_but_a_stores_is():
    lost, store = (failed(kind, "The port is taken.", explained=True) for kind in ("lost", "store"))
    attempts = Attempts(retries=8)
    assert [attempts.wait_s("deploy", lost), attempts.wait_s("deploy", lost)] == [1, None]
    assert [attempts.wait_s("clean", store), attempts.wait_s("clean", store)] == [5, 10]


def test_a_run_waits_between_attempts_and_says_how_long_and_why(
    tmp_path: Path, server: str, impatient: None, capsys: pytest.CaptureFixture[str]
):
    faults = ["kill", "store", "kill", "connection"]
    dag = RandomDag(str(tmp_path / "store"), str(tmp_path / "diary"), [[]], [faults])
    stages, notes = list(dag.planned().values()), Notes()
    manifests = runner(stages, tmp_path / "store", server, notes).run()
    assert manifests["s0"]["provenance"]["job_id"].endswith("-a5")
    assert notes.waits == [("lost", 0.01), ("store", 0.05), ("lost", 0.02), ("lost", 0.04)]

    PlainWatcher(stages).retrying(stages[0], "Its process was killed.", kind="lost", wait_s=4.0)
    assert capsys.readouterr().out == "s0  lost, trying again in 4 s: Its process was killed.\n"
    JsonWatcher(stages).retrying(stages[0], "It is full.", kind="memory", wait_s=10.0)
    assert '"kind": "memory", "wait_s": 10.0' in capsys.readouterr().out


def test_a_stage_waits_for_its_next_attempt_while_others_run(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(kinds.RETRIES, "lost", replace(RETRIES["lost"], first_s=1.0))
    dag = RandomDag(str(tmp_path / "store"), str(tmp_path / "diary"), [[], [], []], [["kill"], [], []])
    notes = Notes()
    runner(list(dag.planned().values()), tmp_path / "store", server, notes, parallel=1).run()
    ends = [line for line in notes.lines if line.split()[0] in ("retrying", "finished")]
    ends = [line.split(":")[0] for line in ends]
    assert ends[:2] == ["retrying s0", "finished s1"]  # after it, on a slow machine, the wait may be over
    assert sorted(ends[2:]) == ["finished s0", "finished s2"]


def test_a_run_that_is_stopped_while_a_stage_waits_ends_at_once(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(kinds.RETRIES, "lost", replace(RETRIES["lost"], first_s=600.0))
    store = tmp_path / "store"

    class Stopping(Notes):
        def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
            Records(store).record_stop()

    dag = RandomDag(str(store), str(tmp_path / "diary"), [[]], [["kill"]])
    with pytest.raises(ClusterError, match="The run was stopped"):
        runner(list(dag.planned().values()), store, server, Stopping()).run()


def test_a_stage_that_hangs_twice_ends_the_run_with_the_remedy_and_the_next_run_heals_it(
    tmp_path: Path, server: str, impatient: None
):
    placement = {"gate": str(tmp_path / "gate"), "pids": str(tmp_path / "pids"), "timeouts": {"one": "0.5s"}}
    spec = StageSpec(name="one", kind="hang", settings={}, function=f"{STAGES}:hang", placement=placement)
    notes = Notes()
    with pytest.raises(StageFailed) as caught:
        runner(plan([spec], tmp_path, {"hang": "1"}), tmp_path, server, notes).run()
    assert notes.waits == [("timeout", 0.01)]
    assert caught.value.what == "Stage one failed after 2 attempts."
    assert "longer than 0.5 s" in caught.value.why
    assert " in hang" in caught.value.why, "the end of its log has where it hung"
    assert "where.timeouts" in caught.value.remedy

    (tmp_path / "gate").touch()
    assert runner(plan([spec], tmp_path, {"hang": "1"}), tmp_path, server, Notes()).run().keys() == {"one"}


def test_a_job_that_the_head_has_forgotten_was_lost_and_another_makes_its_artifact(
    tmp_path: Path, server: str, impatient: None
):
    notes = Notes()
    versions = {"wait_for_gate": "1", "count_inputs": "1"}

    def forget() -> None:
        wait_until(lambda: (tmp_path / "starts.txt").exists(), 60, "the job")
        ask(server, "restart")
        (tmp_path / "gate").touch()

    thread = threading.Thread(target=forget)
    thread.start()
    runner(plan(gated(tmp_path), tmp_path, versions), tmp_path, server, notes).run()
    thread.join()
    assert [kind for kind, _ in notes.waits] == ["lost"]
    assert notes.lines[-1] == "finished after"
