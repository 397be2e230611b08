"""``casa plan``, ``status``, ``logs`` and ``stop``: looking at runs, and ending them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import (
    DEFAULT_RECIPE,
    DEFAULT_STORE,
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    print_json,
)

if TYPE_CHECKING:
    from pipelines.cli.session import LatestRun
    from pipelines.dag.plan import PlannedStage

MARKS = {"done": "[green]✓ done", "run": "[yellow]→ run", "check": "[cyan]? check"}
FOLLOW_S = 0.3


def plan(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    json_: JsonOption = False,
    training: Annotated[
        bool,
        typer.Option("--training", help="What training takes instead: memory of a GPU by part, and time."),
    ] = False,
    gpu: Annotated[str, typer.Option(help="A100, A100-40, L40S, H100, H200 or B200.")] = "H100",
    gpus: Annotated[
        int | None, typer.Option(help="How many; where.train.workers if not given.", min=1)
    ] = None,
) -> None:
    """Show what a run would do, and why, without doing it; or what its training takes.

    With --training no data is looked at, and what does not fit a GPU is refused with what would make it fit.

    Examples:

      casa plan

      casa plan quickstart --set evaluate.batch_size=32

      casa plan my.yaml --json

      casa plan casa-qwen-image --training --gpu H100 --gpus 64
    """
    if training:
        _plan_training(recipe, set_ or (), gpu, gpus, as_json=json_)
        return
    from pipelines.cli.session import open_run

    stages = [_with_state(stage) for stage in open_run(recipe, set_ or ()).stages]
    if json_:
        print_json([_planned(stage) for stage in stages])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("stage", "fingerprint", "code", "", "why"):
        table.add_column(column, no_wrap=column != "why")
    for stage in stages:
        table.add_row(
            stage.name, stage.fingerprint[:12], stage.code_version, MARKS[stage.status], stage.reason
        )
    Console().print(table)


def _plan_training(
    recipe: str, overrides: Sequence[str], gpu: str, gpus: int | None, *, as_json: bool
) -> None:
    from casa_core.hardware import find_gpu
    from pipelines.cli.show_training import estimate_json, show_estimate
    from pipelines.cost.estimate import check_fits, estimate
    from pipelines.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    found = estimate(loaded, find_gpu(gpu), gpus)
    if as_json:
        print_json(estimate_json(found))
    else:
        show_estimate(found, loaded.name)
    check_fits(found, loaded)


def _with_state(stage: PlannedStage) -> PlannedStage:
    """A state stage's status as it is right now, rather than "to be checked"."""
    from dataclasses import replace

    from pipelines.dag.run import held_state

    if not stage.spec.state:
        return stage
    if held_state(stage) is not None:
        return replace(stage, status="done", reason="running, and as asked for")
    return replace(stage, status="run", reason="not running, or not as asked for")


def _planned(stage: PlannedStage) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "kind": stage.spec.kind,
        "fingerprint": stage.fingerprint,
        "code_version": stage.code_version,
        "status": stage.status,
        "reason": stage.reason,
        "inputs": stage.spec.inputs,
        "artifact": str(stage.folder),
    }


def status(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Show the latest run of a store: its stages, Ray and the endpoint.

    Examples:

      casa status

      casa status --store /data/runs --json
    """
    from pipelines.cli.session import latest_run
    from pipelines.cli.state import look

    seen = look(latest_run(store))
    if json_:
        print_json(seen)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", title=f"{seen['recipe']}", title_justify="left")
    for column in ("stage", "state", "attempts", "summary"):
        table.add_column(column)
    for stage in seen["stages"]:
        table.add_row(stage["stage"], stage["state"], str(stage["attempts"]), stage["headline"])
    console.print(table)
    console.print(f"Ray       {seen['ray'] or 'not running'}", highlight=False)
    console.print(f"endpoint  {seen['endpoint'] or 'not running'}", highlight=False)


def logs(
    stage: Annotated[str, typer.Argument(help="A stage's name, as `casa status` shows it.", metavar="STAGE")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest by default.", min=1)] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Print what a stage's job printed. Logs stay in the store, after Ray has ended too.

    Examples:

      casa logs train --follow

      casa logs clean-vqa --attempt 1
    """
    from pipelines.cli.session import latest_run
    from pipelines.dag.progress import LogTail, parse_progress

    run = latest_run(store)
    job_id = _job_of(run, stage, attempt)
    tail = LogTail(run.records.log_path(job_id))
    while True:
        active = follow and run.cluster.is_reachable() and run.cluster.state(job_id) == "active"
        for line in tail.read():
            if parse_progress(line) is None:
                print(line)
        if not active:
            return
        time.sleep(FOLLOW_S)


def _job_of(run: LatestRun, stage: str, attempt: int | None) -> str:
    from casa_core.errors import ConfigError
    from pipelines.cli.state import job_prefix

    names = [entry["name"] for entry in run.stages]
    if stage not in names:
        import difflib

        close = difflib.get_close_matches(stage, names, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"stages: {', '.join(names)}"
        raise ConfigError(f"The latest run has no stage {stage}.", f"it is a run of {run.recipe}", remedy)
    prefix = job_prefix(run.stages[names.index(stage)])
    latest = run.records.latest_attempt(prefix)
    if latest == 0:
        raise ConfigError(
            f"Stage {stage} has not run in this store.",
            "it is waiting for its inputs, or its artifact was made elsewhere",
            "`casa status` shows the stages",
        )
    if attempt is not None and attempt > latest:
        raise ConfigError(f"Stage {stage} had {latest} attempts.", f"there is no attempt {attempt}", "")
    return f"{prefix}{attempt or latest}"


def stop(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """End the endpoint, the jobs and the local Ray head of a store. Artifacts and checkpoints stay.

    On a cluster that is not ours, only this run's jobs and its endpoint are ended.

    Examples:

      casa stop

      casa stop --store /data/runs
    """
    from pipelines.cli.state import end

    ended = end(Path(store).expanduser().absolute())
    if json_:
        print_json(ended)
        return
    parts = [f"{len(ended['processes'])} processes"] if ended["processes"] else []
    parts += [f"{len(ended['jobs'])} jobs"] if ended["jobs"] else []
    print(f"Ended {', '.join(parts)}." if parts else "Nothing was running.")
