"""The run that a command works on: a recipe planned in its store, or a store's latest run."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from casa_core.errors import ClusterError, ConfigError, StoreError
from infra import local_ray
from infra.inside import runner_job
from pipelines.cli.shared.interrupts import INTERRUPTED, end_at_next_interrupt
from pipelines.cli.shared.options import DEFAULT_STORE
from pipelines.cli.shared.submission import runner_prefix, submitted_name
from pipelines.cli.show.format import headline
from pipelines.dag.artifact import read_manifest
from pipelines.dag.code_version import current_versions
from pipelines.dag.history.aliases import alias_of
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import Records
from pipelines.recipe import Recipe, build_stages, load_recipe
from pipelines.recipe.stages import endpoint_of, store_folder
from pipelines.recipe.sweep_members import load_sweep
from pipelines.recipe.sweep_stages import build_sweep
from pipelines.storage.uri import Folder, open_folder
from pipelines.text_format import did_you_mean
from pipelines.waits import announced

HEALTH_CHECK_S = 3.0
STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A recipe, planned in its store.

    Attributes:
        stages: What is to be run.
        recorded: What is recorded as the store's latest run, where ``stages`` are part of it.
    """

    recipe: Recipe
    stages: list[PlannedStage]
    records: Records
    cluster: Cluster
    recorded: list[PlannedStage] | None = None


def open_run(recipe: str, overrides: Sequence[str], kinds: frozenset[str] | None = None) -> OpenRun:
    """Load a recipe and plan it: all of it, or its stages of some kinds.

    Raises:
        ConfigError: If the recipe is wrong.
    """
    loaded = load_recipe(recipe, overrides)
    opened = _open(loaded, build_stages(loaded))
    if kinds is None:
        return opened
    part = [stage for stage in opened.stages if stage.spec.kind in kinds]
    return replace(opened, stages=part, recorded=opened.stages)


def open_sweep(recipe: str, overrides: Sequence[str], over: Sequence[str] = ()) -> OpenRun:
    """Load a recipe's sweep and plan it.

    Raises:
        ConfigError: If the recipe is wrong, or has no sweep.
    """
    loaded, members = load_sweep(recipe, overrides, over)
    return _open(loaded, build_sweep(loaded, members))


def _open(loaded: Recipe, specs: list[StageSpec]) -> OpenRun:
    store = store_folder(loaded)
    records = Records(store)
    with announced("Planning: the code of each stage is read, and what the store holds"):
        stages = plan(specs, store, current_versions(cache=records.session / "sources.json"))
    cluster = Cluster(loaded.where.ray.model_dump(mode="json"), records.session, store)
    return OpenRun(recipe=loaded, stages=stages, records=records, cluster=cluster)


def run_stages(opened: OpenRun, command: str, *, as_json: bool, plain: bool) -> dict[str, dict[str, Any]]:
    """Run all stages of a plan, show their progress, and record the plan as the store's latest run.

    Args:
        command: The command as typed, without options: how to go on after an interrupt.
        as_json, plain: One JSON object per event, or one line, instead of a live table.

    Returns:
        Manifest of each stage, by name.

    Raises:
        StageFailed, ClusterError: As :class:`~pipelines.dag.run.Runner` does.
        Exit: Interrupted from the keyboard; jobs that run go on.
    """
    from pipelines.cli.show.watch import JsonWatcher, LiveWatcher, PlainWatcher
    from pipelines.dag.run import Runner

    live = not (as_json or plain) and sys.stdout.isatty()
    watcher = (LiveWatcher if live else JsonWatcher if as_json else PlainWatcher)(opened.stages)
    where = opened.recipe.where
    limits = {"parallel": where.parallel_stages, "retries": where.retries}
    runner = Runner(opened.stages, opened.records, opened.cluster, watcher, **limits)
    _require_port(opened)
    opened.records.prepare()
    opened.records.write_run(
        opened.recipe.name,
        where.ray.model_dump(mode="json"),
        endpoint_of(where),
        opened.recorded or opened.stages,
        runner_job(),
    )
    try:
        with watcher:
            return runner.run()
    except KeyboardInterrupt:
        end_at_next_interrupt()
        _explain_interrupt(runner.active, command, opened.records.store)
        raise typer.Exit(INTERRUPTED) from None


def _require_port(opened: OpenRun) -> None:
    """Refuse a port that is taken before anything starts, and not after training.

    Where this store's own head runs, its endpoint may be what answers: then the stage looks.
    """
    deploys = any(stage.spec.kind == "deploy" and stage.status != "done" for stage in opened.stages)
    if deploys and opened.cluster.is_local and local_ray.find(opened.records.session) is None:
        from pipelines.deploy.endpoint import require_free_port  # late: it needs an HTTP client

        require_free_port(opened.recipe.where.serve.host, opened.recipe.where.serve.port)


def _explain_interrupt(active: list[str], command: str, store: Folder) -> None:
    going_on = f"Still running in Ray: {', '.join(active)}." if active else "No stage was running."
    usual = store == DEFAULT_STORE.absolute()
    option = "" if usual else f" --store {shlex.quote(str(store))}"
    command, stop = f"{command}{option}", f"casa stop{option}"
    width = max(len(command), len(stop))
    print(
        f"\nInterrupted. {going_on}\n"
        f"  {command:<{width}}    goes on from here (repeat your --set options)\n"
        f"  {stop:<{width}}    ends the jobs and Ray; finished stages and checkpoints are kept",
        file=sys.stderr,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestRun:
    """The latest run of a store, as it was recorded.

    Attributes:
        stages: ``name``, ``kind``, ``fingerprint`` and ``folder`` of each.
        job: The runner's, of a submitted run; empty for one that a terminal runs.
    """

    recipe: str
    endpoint: str
    job: str
    stages: list[dict[str, Any]]
    records: Records
    cluster: Cluster

    def stage(self, name: str) -> dict[str, Any]:
        """The recorded stage of that name.

        Raises:
            ConfigError: If the run has none.
        """
        by_name = {stage["name"]: stage for stage in self.stages}
        if name not in by_name:
            raise ConfigError(
                f"The latest run in {self.records.store} has no stage {name}.",
                f"It is a run of {self.recipe}.",
                did_you_mean(name, by_name, f"Its stages are {', '.join(by_name)}."),
            )
        return by_name[name]

    def attempts(self, stage: dict[str, Any]) -> int:
        """How often a recorded stage was started."""
        return self.records.latest_attempt(job_prefix(stage))


def latest_run(store: Folder) -> LatestRun:
    """The latest run of a store.

    Raises:
        ConfigError: If there is none.
    """
    records = Records(store)
    run = records.read_run()
    if run is None:
        raise ConfigError(
            f"There is no run in {store}.",
            "The store records its latest run, and has none.",
            "`casa run` starts one; `--store` names another store.",
        )
    return LatestRun(
        recipe=run["recipe"],
        endpoint=run["endpoint"],
        job=_latest_job(records, run.get("job", "")),
        stages=[{**stage, "folder": _folder_now(stage, store)} for stage in run["stages"]],
        records=records,
        cluster=Cluster(run["ray"], records.session, store),
    )


def _folder_now(stage: dict[str, Any], store: Folder) -> str:
    """Where a recorded stage's artifact is: a store that was moved takes its artifacts along."""
    here = store / stage["kind"] / stage["fingerprint"]
    recorded = stage["folder"]
    moved = isinstance(here, Path) and "://" not in recorded and not Path(recorded).exists() and here.exists()
    return str(here) if moved else recorded


def _latest_job(records: Records, job_id: str) -> str:
    """The latest attempt of a runner: one that was just submitted has not recorded its run yet."""
    if not job_id:
        return ""
    prefix = runner_prefix(submitted_name(job_id))
    return f"{prefix}{records.latest_attempt(prefix)}"


def job_prefix(stage: dict[str, Any]) -> str:
    """Start of the ids of a recorded stage's jobs."""
    return f"{stage['name']}-{stage['fingerprint'][:12]}-a"


def run_state(run: LatestRun) -> dict[str, Any]:
    """State of a run's stages, Ray and endpoint, as JSON. Asks Ray only if it runs, and starts nothing."""
    problem = run.cluster.problem()
    active = set() if problem else set(run.cluster.active_jobs())
    return {
        "recipe": run.recipe,
        "store": str(run.records.store),
        "ray": None if problem else run.cluster.address(),
        "ray_problem": problem,
        "runner": _runner_state(run, active),
        "endpoint": run.endpoint if _is_serving(run, problem) else None,
        "stages": [_stage_state(run, stage, active) for stage in run.stages],
    }


def _is_serving(run: LatestRun, problem: str) -> bool:
    """Whether the endpoint answers. Another cluster's may not be reachable from here: its Ray is asked."""
    if run.cluster.is_local:
        return local_ray.answers(f"{run.endpoint}/healthz", HEALTH_CHECK_S)
    return not problem and run.cluster.is_serving()


def _runner_state(run: LatestRun, active: set[str]) -> dict[str, str] | None:
    """The runner of a submitted run: its job, and whether it works, how it ended, or that it was lost."""
    if not run.job:
        return None
    outcome = run.records.outcome(run.job)
    if run.job in active:
        state, why = "running", ""
    elif outcome is None:
        state, why = "interrupted", f"`casa submit --name {submitted_name(run.job)}` goes on"
    else:
        state, why = ("done", "") if outcome.ok else ("failed", outcome.what)
    return {"job": run.job, "state": state, "why": why}


def _stage_state(run: LatestRun, stage: dict[str, Any], active: set[str]) -> dict[str, Any]:
    folder = open_folder(stage["folder"])
    manifest = read_manifest(folder)
    attempts = run.attempts(stage)
    job_id = f"{job_prefix(stage)}{attempts}"
    outcome = run.records.outcome(job_id)
    if job_id in active and outcome is None:  # with one it has ended, which Ray has yet to notice
        state = "running"
    elif manifest is not None:
        state = "done"
    elif outcome is not None and not outcome.ok:
        state = "failed"
    else:
        state = "interrupted" if attempts else "waiting"
    return {
        "stage": stage["name"],
        "kind": stage["kind"],
        "fingerprint": stage["fingerprint"],
        "state": state,
        "attempts": attempts,
        "headline": headline(manifest["summary"]) if manifest else (outcome.what if outcome else ""),
        "artifact": str(folder) if manifest else None,
        "alias": alias_of(manifest) if manifest else None,
    }


def stop_run(store: Folder) -> dict[str, Any]:
    """End what runs for a store.

    Returns:
        ``processes``: ids of the local head's ended processes. ``jobs``: ids of ended jobs elsewhere.

    Raises:
        StoreError: If the store takes no record of the stop; the local head has ended.
        ClusterError: If the run's cluster does not answer, or a job there does not end; the local head has.
    """
    records = Records(store)
    run = latest_run(store) if records.read_run() is not None else None
    unrecorded: StoreError | None = None
    if run is not None:
        try:  # first: a runner that sees its jobs end must not take that for a loss
            records.record_stop()
        except StoreError as error:  # as where the disk is full: what runs there is to end all the same
            unrecorded = error
    processes = local_ray.stop(records.session)
    if unrecorded is not None:
        raise StoreError(
            f"{len(processes)} processes were ended, but the stop could not be recorded.",
            f"The store takes no record: {unrecorded.what.rstrip('.')}.",
            "A run that is still being watched may start again: end it too (Ctrl-C).",
        ) from unrecorded
    return {"processes": processes, "jobs": [] if run is None or run.cluster.is_local else _stop_remote(run)}


def _stop_remote(run: LatestRun) -> list[str]:
    jobs = run.cluster.active_jobs()
    for job_id in jobs:
        run.cluster.stop(job_id)
    run.cluster.end_serving()
    deadline = time.monotonic() + STOP_S
    while left := set(jobs) & set(run.cluster.active_jobs()):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{len(left)} jobs have not ended: {', '.join(sorted(left))}.",
                f"Ray was asked to end them {STOP_S:.0f} s ago.",
                "Run `casa stop` again; Ray's dashboard shows what the jobs do.",
            )
        time.sleep(0.25)
    return jobs
