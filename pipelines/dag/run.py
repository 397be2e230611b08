"""The runner: takes a plan to its end, one Ray job per stage.

Its state lies in the store and in Ray. If it is killed, the jobs go on; the next runner skips finished
stages, follows running ones, and starts the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from casa_core.errors import CasaError, TransferError
from infra.ray_errors import Busy, Unreachable
from pipelines.dag.artifact import read_manifest
from pipelines.dag.attempts.failures import StageFailed, run_stopped, stage_failed, stage_stopped
from pipelines.dag.attempts.kinds import Attempts, FailureKind, kind_of
from pipelines.dag.code_version import load_function
from pipelines.dag.jobs import Cluster, JobExists, JobState
from pipelines.dag.plan import PlannedStage
from pipelines.dag.progress import Progress, last_lines, parse_progress, printed_lines
from pipelines.dag.records import JobSpec, Records
from pipelines.storage.growing import Follower

POLL_S = 0.25
"""Seconds between two questions to the cluster about the same jobs."""
LOOK_S, LOOK_SHARE = 0.02, 0.005
"""Seconds between two looks for what the jobs leave in a store on a disk, where looking costs no request; the
share of the time since a job began or ended that is added, up to ``POLL_S``: a long stage can wait."""
UNREACHABLE_S = 60.0
"""Seconds without the cluster, or the store, after which a run ends."""
BUSY_S = 120.0
"""The same where the cluster answers, with a server's errors only."""
STARTING_S = 300.0
"""The same where this machine's own head runs: the agent that takes jobs starts last, which takes a minute or
two where everything waits for a core."""
WAIT_SHOWN_S = 10.0
"""Seconds between two looks at why a job has not begun, which are shown."""
LONGEST_PAUSE_S = 5.0
LOG_LINES = 20


class Observer(Protocol):
    """Receives the events of a run."""

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        """A stage's job was submitted, or found running (``attached``)."""

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        """A stage's job reported its progress."""

    def printed(self, stage: PlannedStage, line: str) -> None:
        """A stage's job printed a line."""

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        """A stage's artifact is whole, or its state holds; ``cached``: it was so before the run."""

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        """An attempt at a stage failed, and another follows in ``wait_s`` seconds."""

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        """A stage failed for good."""


@dataclass(slots=True)
class _Running:
    """A stage whose job is under way."""

    stage: PlannedStage
    job_id: str
    tail: Follower
    since: float = field(default_factory=time.monotonic)
    begun: bool = False
    asked: int = 0


class Runner:
    """Runs a plan.

    Args:
        stages: The plan, inputs before what is made from them.
        cluster: Reached only when a stage has to run.
        parallel: Stages that may run side by side.
        retries: Further attempts at a stage, as :mod:`pipelines.dag.attempts.kinds` has them.
    """

    def __init__(
        self,
        stages: Sequence[PlannedStage],
        records: Records,
        cluster: Cluster,
        observer: Observer,
        *,
        parallel: int = 2,
        retries: int = 3,
    ) -> None:
        self._stages = stages
        self._records = records
        self._cluster = cluster
        self._observer = observer
        self._parallel = parallel
        self._attempts = Attempts(retries)
        self._manifests: dict[str, dict[str, Any]] = {}
        self._waiting: list[PlannedStage] = []
        self._running: dict[str, _Running] = {}
        self._not_before: dict[str, float] = {}
        self._ask_at = self._changed_at = 0.0
        self._failures: list[StageFailed] = []
        self._reached = False
        self._silent_since: float | None = None
        self._pause_s = POLL_S
        self._last_stop = ""

    def run(self) -> dict[str, dict[str, Any]]:
        """Take every stage to its end.

        Returns:
            Manifest of each stage, by name.

        Raises:
            StageFailed: If a stage failed; raised once the stages beside it have ended.
            ClusterError: If the cluster cannot be reached, or stays out of reach; if the run was stopped.
        """
        self._records.prepare()
        self._last_stop = self._records.last_stop()
        self._skip_done()
        while True:
            ended = False
            try:
                self._start_ready()
                ended = self._poll()
            except (Unreachable, TransferError) as error:  # the cluster, or the store
                self._wait_for_cluster(error)
            if not self._running and (self._failures or not self._waiting):
                break
            if not ended:  # else something may be ready now
                time.sleep(self._until_next_look())
        if self._failures:
            raise self._failures[0]
        return self._manifests

    @property
    def active(self) -> list[str]:
        """Names of the stages whose jobs are under way."""
        return list(self._running)

    def _until_next_look(self) -> float:
        if not isinstance(self._records.store, Path):
            return POLL_S
        return min(POLL_S, LOOK_S + LOOK_SHARE * (time.monotonic() - self._changed_at))

    def _skip_done(self) -> None:
        for stage in self._stages:
            # A cached stage counts even if its inputs were removed since: nothing needs them.
            manifest = None if stage.spec.state else read_manifest(stage.folder)
            if manifest is None:
                self._waiting.append(stage)
            else:
                self._finish(stage, manifest, cached=True)

    def _start_ready(self) -> None:
        """Start whatever has all its inputs, as far as there is room. After a failure, nothing new starts."""
        now = time.monotonic()
        for stage in list(self._waiting):
            ready = all(name in self._manifests for name in stage.spec.inputs.values())
            due = self._not_before.get(stage.name, 0.0) <= now
            if ready and due and not self._failures and len(self._running) < self._parallel:
                self._ensure(stage)
                self._waiting.remove(stage)

    def _ensure(self, stage: PlannedStage) -> None:
        """Have the stage's job running: find it, or submit the next attempt. Two runners submit only one."""
        if stage.spec.state and (state := held_state(stage)) is not None:
            self._finish(stage, state, cached=True)
            return
        with self._records.starting(stage):
            manifest = None if stage.spec.state else read_manifest(stage.folder)
            if manifest is not None:  # Another runner has made it meanwhile.
                self._finish(stage, manifest, cached=True)
                return
            self._require_wanted()
            attempt = self._records.latest_attempt(stage.job_prefix)
            job_id = f"{stage.job_prefix}{attempt}"
            # One that has written its outcome has ended, though the cluster may take a second to notice.
            attached = (
                attempt > 0
                and self._records.outcome(job_id) is None
                and self._cluster.state(job_id) == "active"
            )
            if not attached:
                job_id = self._submit(stage, attempt + 1)
        self._reach()
        self._running[stage.name] = _Running(stage, job_id, Follower(self._records.log_path(job_id)))
        self._changed_at = time.monotonic()
        self._observer.started(stage, job_id, attached=attached)

    def _submit(self, stage: PlannedStage, attempt: int) -> str:
        """Submit the next attempt; returns the job's id."""
        while True:
            spec = JobSpec.of(stage, self._records.store, attempt)
            path = self._records.write_spec(spec)
            try:
                self._cluster.submit(spec, path)
            except JobExists:  # The store lost its records of it since: take the next one.
                path.unlink()
                attempt += 1
            else:
                return spec.job_id

    def _poll(self) -> bool:
        """Look after the jobs; whether one has ended."""
        ask = time.monotonic() >= self._ask_at
        ended = False
        for running in list(self._running.values()):
            state = self._state(running, ask=ask)
            self._pass_on_output(running, now=state != "active")
            if ask and state == "active" and not running.begun:
                self._show_wait(running)
            if state != "active":
                self._settle(running, state)
                del self._running[running.stage.name]
                ended, self._changed_at = True, time.monotonic()
        if ask:
            if not self._running:  # all that is left waits for its next attempt
                self._require_wanted()
            self._ask_at = time.monotonic() + POLL_S
        return ended

    def _state(self, running: _Running, *, ask: bool) -> JobState | None:
        """State of a job, of the cluster where it is asked. In between, a job that wrote its good outcome to
        a store on a disk has succeeded: the cluster takes longer to notice."""
        if ask:
            state = self._cluster.state(running.job_id)
            self._reach()
            return state
        if not isinstance(self._records.store, Path):
            return "active"
        outcome = self._records.outcome(running.job_id)
        return "succeeded" if outcome is not None and outcome.ok else "active"

    def _settle(self, running: _Running, state: JobState | None) -> None:
        """A job has ended: its artifact is there, or it is tried again, or it failed, or was stopped."""
        stage = running.stage
        outcome = self._records.outcome(running.job_id)
        manifest = read_manifest(stage.folder)
        if manifest is not None and (outcome is None or outcome.ok):
            self._pass_on_output(running)
            self._finish(stage, manifest, cached=False)
            return
        reason = outcome.what if outcome is not None and not outcome.ok else self._why_lost(running)
        if state == "stopped":
            self._require_wanted()
            self._fail(stage, stage_stopped(stage.name, reason))
            return
        if outcome is None and (error := self._cluster.why_not_begun(running.job_id)) is not None:
            what = f"Stage {stage.name} cannot begin on this cluster."
            self._fail(stage, StageFailed(what, error.what, error.remedy))
            return
        wait_s = self._attempts.wait_s(stage.name, outcome)
        if wait_s is None:
            log = [] if outcome is not None and outcome.explained else self._log_of(running)
            made = self._attempts.made(stage.name)
            self._fail(stage, stage_failed(stage.name, reason, outcome, log, attempts=made))
            return
        self._not_before[stage.name] = time.monotonic() + wait_s
        self._waiting.insert(0, stage)
        self._observer.retrying(stage, reason, kind=kind_of(outcome), wait_s=wait_s)

    def _fail(self, stage: PlannedStage, error: StageFailed) -> None:
        self._failures.append(error)
        self._observer.failed(stage, error)

    def _finish(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        self._manifests[stage.name] = manifest
        self._observer.finished(stage, manifest, cached=cached)

    def _pass_on_output(self, running: _Running, *, now: bool = True) -> None:
        latest = None
        for line in printed_lines(running.tail, now=now):
            running.begun = True
            if progress := parse_progress(line):
                latest = progress
            else:
                self._observer.printed(running.stage, line)
        if latest is not None:
            self._observer.progressed(running.stage, latest)

    def _show_wait(self, running: _Running) -> None:
        """Show, now and then, why a job has not begun.

        Raises:
            ClusterError: If it never will: no node of the cluster is alive.
        """
        waited_s = time.monotonic() - running.since
        if waited_s < (running.asked + 1) * WAIT_SHOWN_S:
            return
        running.asked += 1
        why = self._cluster.waits_for(running.job_id)
        running.begun = not why
        if why:
            note = Progress(0, 0, f"has not begun after {waited_s:.0f} s: {why}")
            self._observer.progressed(running.stage, note)
            if waited_s >= UNREACHABLE_S and not self._cluster.is_local:
                self._cluster.require_node()

    def _reach(self) -> None:
        self._reached, self._silent_since, self._pause_s = True, None, POLL_S

    def _require_wanted(self) -> None:
        """End the run if `casa stop` was called since it began: it starts nothing more."""
        if self._records.last_stop() != self._last_stop:
            raise run_stopped() from None

    def _wait_for_cluster(self, error: Unreachable | TransferError) -> None:
        """Look for the cluster anew; a local head that ended is started again, and its jobs are new attempts.

        Raises:
            ClusterError: If the head was stopped on purpose, or there has been no answer for too long.
        """
        if self._cluster.was_stopped():  # and not the store's record, which may be what is out of reach
            raise run_stopped() from None
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        # A foreign cluster that never answered is more likely misspelt than about to come back.
        answered = self._reached or isinstance(error, Busy)
        hopeless = not answered and not self._cluster.is_local
        bound_s = BUSY_S if isinstance(error, Busy) else UNREACHABLE_S
        if not self._reached and self._cluster.has_local_head():
            bound_s = STARTING_S
        if hopeless or now - self._silent_since > bound_s:
            raise error
        self._cluster.forget()
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _why_lost(self, running: _Running) -> str:
        message = self._cluster.message(running.job_id)
        message = message.partition(", last available logs")[0]  # The log is shown on its own.
        return message or "its process ended without an error (killed, out of memory, or its node was lost)"

    def _log_of(self, running: _Running) -> list[str]:
        log = last_lines(self._records.log_path(running.job_id), LOG_LINES)
        # Without a log of its own, it failed before it began: Ray has what there is.
        return log or self._cluster.driver_log(running.job_id).splitlines()[-LOG_LINES:]


def held_state(stage: PlannedStage) -> dict[str, Any] | None:
    """Manifest of a state stage whose state holds right now, with a fresh summary; None if it does not.

    A job that was killed after it brought the state about left no manifest, without which the store knows no
    more of it than a lost one's: its next attempt finds the state, and records it.
    """
    manifest = read_manifest(stage.folder)
    if manifest is None:
        return None
    summary = load_function(stage.spec.check)(stage.spec.placement, stage.spec.settings, stage.fingerprint)
    return None if summary is None else {**manifest, "summary": summary}
