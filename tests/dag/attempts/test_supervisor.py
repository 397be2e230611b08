"""How jobs end: each end but the loss of a node leaves an outcome that states what it was, and what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.dag.artifact import read_manifest
from pipelines.dag.plan import StageSpec, plan
from pipelines.dag.records import JobSpec, Outcome, Records
from tests.support.dag.runner import STAGES, gated, toy
from tests.support.paths import ROOT
from tests.support.serve.cluster import wait_until

MEMORY = Path("/sys/fs/cgroup/memory")


def start(spec: StageSpec, store: Path, group: Path | None = None) -> tuple[subprocess.Popen[bytes], JobSpec]:
    """A stage's job, as Ray starts it; in a control group of its own where one is given."""
    (stage,) = plan([spec], store, {spec.kind: "1"})
    records = Records(store)
    records.prepare()
    job = JobSpec.of(stage, store, records.latest_attempt(stage.job_prefix) + 1)
    words = [str(records.write_spec(job))] + ([str(job.timeout_s)] if job.timeout_s else [])

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.dag.job_main", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=enter,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return process, job


def outcome_of(process: subprocess.Popen[bytes], job: JobSpec) -> Outcome | None:
    process.wait(60)
    return Records(Path(job.store)).outcome(job.job_id)


def log_of(job: JobSpec) -> str:
    return Path(Records(Path(job.store)).log_path(job.job_id)).read_text()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_stage_that_hangs_is_ended_with_its_processes_and_its_log_has_where_it_hung(tmp_path: Path):
    placement = {"gate": str(tmp_path / "gate"), "pids": str(tmp_path / "pids"), "timeouts": {"hang": "2s"}}
    stage = StageSpec(name="one", kind="hang", settings={}, function=f"{STAGES}:hang", placement=placement)
    process, job = start(stage, tmp_path)
    outcome = outcome_of(process, job)
    assert outcome is not None
    assert (outcome.ok, outcome.kind) == (False, "timeout")
    assert "longer than 2.0 s" in outcome.what
    assert "where.timeouts" in outcome.remedy
    assert " in hang" in log_of(job)
    assert outcome.what in log_of(job)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_until(lambda pid=pid: not is_running(pid), 10, "the end of its processes")

    (tmp_path / "gate").touch()
    assert outcome_of(*start(stage, tmp_path)) == Outcome(ok=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_killed_stage_was_lost_and_its_outcome_names_the_signal(tmp_path: Path, number: signal.Signals):
    process, job = start(gated(tmp_path)[0], tmp_path)
    wait_until(lambda: (tmp_path / "starts.txt").exists(), 60, "the stage")
    os.kill(int((tmp_path / "starts.txt").read_text()), number)
    outcome = outcome_of(process, job)
    assert outcome is not None
    assert (outcome.kind, outcome.what) == (
        "lost",
        f"Its process was killed by signal {number:d} ({number.name}).",
    )
    assert outcome.what in log_of(job)


def test_a_stage_ends_when_the_process_above_it_was_killed(tmp_path: Path):
    process, job = start(gated(tmp_path)[0], tmp_path)
    wait_until(lambda: (tmp_path / "starts.txt").exists(), 60, "the stage")
    stage = int((tmp_path / "starts.txt").read_text())
    process.kill()
    assert outcome_of(process, job) is None
    wait_until(lambda: not is_running(stage), 10, "the end of the stage")


def test_a_job_that_is_asked_to_end_leaves_no_outcome_and_no_process(tmp_path: Path):
    """As `casa stop`, through Ray: both processes get SIGTERM."""
    process, job = start(gated(tmp_path)[0], tmp_path)
    wait_until(lambda: (tmp_path / "starts.txt").exists(), 60, "the stage")
    os.killpg(process.pid, signal.SIGTERM)
    assert outcome_of(process, job) is None
    assert process.returncode
    assert not is_running(int((tmp_path / "starts.txt").read_text()))


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 300 MB."""
    group = MEMORY / f"casa-{uuid.uuid4().hex[:8]}"
    limit = "memory.limit_in_bytes"
    if not (MEMORY / limit).exists():  # the second version of control groups
        group, limit = MEMORY.parent / group.name, "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text("300000000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (group / "cgroup.procs").read_text():
        time.sleep(0.05)
    group.rmdir()


def test_a_stage_that_the_kernel_kills_for_want_of_memory_says_so(tmp_path: Path, small_memory: Path):
    outcome = outcome_of(*start(toy("hungry", "eat_memory"), tmp_path, small_memory))
    assert outcome is not None
    assert outcome.kind == "memory"
    assert "for want of memory" in outcome.what
    assert "parallel_stages" in outcome.remedy
    assert read_manifest(plan([toy("hungry", "eat_memory")], tmp_path, {"eat_memory": "1"})[0].folder) is None


def test_records_of_other_versions_are_read(tmp_path: Path):
    records = Records(tmp_path)
    records.prepare()
    old = '{"ok": false, "what": "It failed.", "why": "", "remedy": "", "retry": true, "explained": true}'
    records.outcome_path("a").write_text(old)
    assert records.outcome("a") == Outcome(ok=False, what="It failed.", explained=True)
