"""``casa logs``: what a stage's job printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, StoreOption

if TYPE_CHECKING:
    from pipelines.cli.shared.run_handle import LatestRun

RUNNER = "run"
"""Stands for the runner of a submitted run."""


def logs(
    stage: Annotated[str, typer.Argument(help="A stage's name, as `casa status` shows it.", metavar="STAGE")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest by default.", min=1)] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Print what a stage's job printed, or `run` for a submitted run's runner. Logs stay in the store, after
    Ray has ended too.

    Examples:

      casa logs train --follow

      casa logs clean-vqa --attempt 1

      casa logs run --follow --store s3://bucket/runs
    """
    from pipelines.cli.shared.run_handle import latest_run
    from pipelines.cli.show.log import print_lines

    run = latest_run(store)
    job_id = run.job if stage == RUNNER and run.job and attempt is None else _job_id(run, stage, attempt)
    print_lines(run.records, run.cluster, job_id, follow=follow)


def _job_id(run: LatestRun, name: str, attempt: int | None) -> str:
    from casa_core.errors import ConfigError
    from pipelines.cli.shared.run_handle import job_prefix

    stage = run.stage(name)
    latest = run.attempts(stage)
    if latest == 0:
        ran = [other["name"] for other in run.stages if run.attempts(other)]
        raise ConfigError(
            f"Stage {name} has not run in this store.",
            "It is waiting for its inputs, or its artifact was made elsewhere.",
            f"Stages with logs: {', '.join(ran)}." if ran else "`casa status` shows the stages.",
        )
    if attempt is not None and attempt > latest:
        raise ConfigError(f"Stage {name} had {latest} attempts.", f"There is no attempt {attempt}.", "")
    return f"{job_prefix(stage)}{attempt or latest}"
