"""The runner: takes a plan to its end, one Ray job per stage.

Its state lies in the store and in Ray. If it is killed, the jobs go on; the next runner skips finished
stages, follows running ones, and starts the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from casa_core.errors import CasaError, ClusterError, TransferError
from infra.ray_errors import Busy, Unreachable
from pipelines.dag.artifact import read_manifest
from pipelines.dag.code_version import load_function
from pipelines.dag.jobs import Cluster, JobExists, JobState
from pipelines.dag.plan import PlannedStage
from pipelines.dag.progress import Progress, last_lines, parse_progress, printed_lines
from pipelines.dag.records import JobSpec, Outcome, Records
from pipelines.storage.growing import Follower

POLL_S = 0.25
UNREACHABLE_S = 60.0
"""Seconds without the cluster, or the store, after which a run ends."""
BUSY_S = 120.0
"""The same where the cluster answers, with a server's errors only."""
LONGEST_PAUSE_S = 5.0
LOG_LINES = 20


class StageFailed(CasaError, RuntimeError):
    """A stage that failed for good; carries the end of its log."""


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

    def retrying(self, stage: PlannedStage, reason: str) -> None:
        """A stage's job was lost and another attempt follows."""

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        """A stage failed for good."""


@dataclass(slots=True)
class _Running:
    """A stage whose job is under way."""

    stage: PlannedStage
    job_id: str
    tail: Follower


class Runner:
    """Runs a plan.

    Args:
        stages: The plan, inputs before what is made from them.
        cluster: Reached only when a stage has to run.
        parallel: Stages that may run side by side.
        retries: Further attempts at a stage whose process or node was lost. One that fails twice running with
            the same error, though it may pass, has failed.
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
        self._retries = retries
        self._manifests: dict[str, dict[str, Any]] = {}
        self._waiting: list[PlannedStage] = []
        self._running: dict[str, _Running] = {}
        self._lost: Counter[str] = Counter()
        self._last_errors: dict[str, str] = {}
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
            try:
                self._start_ready()
                self._poll()
            except (Unreachable, TransferError) as error:  # the cluster, or the store
                self._wait_for_cluster(error)
            if not self._running and (self._failures or not self._waiting):
                break
            time.sleep(POLL_S)
        if self._failures:
            raise self._failures[0]
        return self._manifests

    @property
    def active(self) -> list[str]:
        """Names of the stages whose jobs are under way."""
        return list(self._running)

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
        for stage in list(self._waiting):
            ready = all(name in self._manifests for name in stage.spec.inputs.values())
            if ready and not self._failures and len(self._running) < self._parallel:
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
            attached = attempt > 0 and self._cluster.state(job_id) == "active"
            if not attached:
                job_id = self._submit(stage, attempt + 1)
        self._reach()
        self._running[stage.name] = _Running(stage, job_id, Follower(self._records.log_path(job_id)))
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

    def _poll(self) -> None:
        for running in list(self._running.values()):
            state = self._cluster.state(running.job_id)
            self._reach()
            self._pass_on_output(running, now=state != "active")
            if state != "active":
                self._settle(running, state)
                del self._running[running.stage.name]

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
            self._fail(stage, _stopped(stage, reason))
            return
        if outcome is None and (error := self._cluster.why_not_begun(running.job_id)) is not None:
            what = f"Stage {stage.name} cannot begin on this cluster."
            self._fail(stage, StageFailed(what, error.what, error.remedy))
            return
        if self._may_pass(stage, outcome) and self._lost[stage.name] < self._retries:
            self._lost[stage.name] += 1
            self._waiting.insert(0, stage)
            self._observer.retrying(stage, reason)
            return
        self._fail(stage, self._failure(running, outcome, reason))

    def _may_pass(self, stage: PlannedStage, outcome: Outcome | None) -> bool:
        """Whether another attempt could go better: it left no error, or one that may pass and is new."""
        what = outcome.what if outcome is not None and outcome.explained else ""
        repeated = bool(what) and self._last_errors.get(stage.name) == what
        self._last_errors[stage.name] = what
        return outcome is None or outcome.ok or (outcome.retry and not repeated)

    def _fail(self, stage: PlannedStage, error: StageFailed) -> None:
        self._failures.append(error)
        self._observer.failed(stage, error)

    def _finish(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        self._manifests[stage.name] = manifest
        self._observer.finished(stage, manifest, cached=cached)

    def _pass_on_output(self, running: _Running, *, now: bool = True) -> None:
        latest = None
        for line in printed_lines(running.tail, now=now):
            if progress := parse_progress(line):
                latest = progress
            else:
                self._observer.printed(running.stage, line)
        if latest is not None:
            self._observer.progressed(running.stage, latest)

    def _reach(self) -> None:
        self._reached, self._silent_since, self._pause_s = True, None, POLL_S

    def _require_wanted(self) -> None:
        """End the run if `casa stop` was called since it began: it starts nothing more."""
        if self._records.last_stop() != self._last_stop:
            raise _run_stopped() from None

    def _wait_for_cluster(self, error: Unreachable | TransferError) -> None:
        """Look for the cluster anew; a local head that ended is started again, and its jobs are new attempts.

        Raises:
            ClusterError: If the head was stopped on purpose, or there has been no answer for too long.
        """
        if self._cluster.was_stopped():  # and not the store's record, which may be what is out of reach
            raise _run_stopped() from None
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        # A foreign cluster that never answered is more likely misspelt than about to come back.
        answered = self._reached or isinstance(error, Busy)
        hopeless = not answered and not self._cluster.is_local
        bound_s = BUSY_S if isinstance(error, Busy) else UNREACHABLE_S
        if hopeless or now - self._silent_since > bound_s:
            raise error
        self._cluster.forget()
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _why_lost(self, running: _Running) -> str:
        message = self._cluster.message(running.job_id)
        message = message.partition(", last available logs")[0]  # The log is shown on its own.
        return message or "its process ended without an error (killed, out of memory, or its node was lost)"

    def _failure(self, running: _Running, outcome: Outcome | None, reason: str) -> StageFailed:
        stage = running.stage
        causes = [reason]
        if outcome is not None and outcome.why:
            causes.append(outcome.why)
        if outcome is None or not outcome.explained:
            causes += ["The end of its log:", *(f"    {line}" for line in self._log_of(running))]
        remedy = outcome.remedy if outcome is not None else ""
        remedy = remedy or f"`casa logs {stage.name}` shows all of it; run again to resume."
        attempts = self._lost[stage.name] + 1
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        return StageFailed(f"Stage {stage.name} failed{tried}.", "\n".join(causes), remedy)

    def _log_of(self, running: _Running) -> list[str]:
        log = last_lines(self._records.log_path(running.job_id), LOG_LINES)
        # Without a log of its own, it failed before it began: Ray has what there is.
        return log or self._cluster.driver_log(running.job_id).splitlines()[-LOG_LINES:]


def _run_stopped() -> ClusterError:
    return ClusterError(
        "The run was stopped.",
        "`casa stop` ended its jobs, or its local Ray head.",
        "`casa run` goes on from here; finished stages and checkpoints are kept.",
    )


def _stopped(stage: PlannedStage, message: str) -> StageFailed:
    return StageFailed(
        f"Stage {stage.name} was stopped.",
        f"Its job was ended through Ray's job API or dashboard: {message.rstrip('.')}.",
        "Run again to go on from here; finished stages and checkpoints are kept.",
    )


def held_state(stage: PlannedStage) -> dict[str, Any] | None:
    """Manifest of a state stage whose state holds right now, with a fresh summary; None if it does not."""
    summary = load_function(stage.spec.check)(stage.spec.placement, stage.spec.settings, stage.fingerprint)
    if summary is None:
        return None
    manifest = read_manifest(stage.folder) or {"kind": stage.spec.kind, "fingerprint": stage.fingerprint}
    return {**manifest, "summary": summary}
