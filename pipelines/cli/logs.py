"""``casa logs``: what a stage's job printed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from casa_core.printable import printable
from pipelines.cli.shared.options import DEFAULT_STORE, StoreOption

if TYPE_CHECKING:
    from pipelines.cli.shared.run_handle import LatestRun

FOLLOW_S = 0.3


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
    from pipelines.cli.shared.run_handle import latest_run
    from pipelines.dag.progress import parse_progress, printed_lines
    from pipelines.storage.growing import Follower

    run = latest_run(store)
    job_id = _job_id(run, stage, attempt)
    tail = Follower(run.records.log_path(job_id))
    while True:
        active = follow and run.cluster.is_reachable() and run.cluster.state(job_id) == "active"
        for line in printed_lines(tail, now=not active):
            if parse_progress(line) is None:
                print(printable(line, colours=True))
        if not active:
            return
        time.sleep(FOLLOW_S)


def _job_id(run: LatestRun, name: str, attempt: int | None) -> str:
    from casa_core.errors import ConfigError
    from pipelines.cli.shared.run_handle import job_prefix

    stage = run.stage(name)
    latest = run.attempts(stage)
    if latest == 0:
        raise ConfigError(
            f"Stage {name} has not run in this store.",
            "It is waiting for its inputs, or its artifact was made elsewhere.",
            "`casa status` shows the stages.",
        )
    if attempt is not None and attempt > latest:
        raise ConfigError(f"Stage {name} had {latest} attempts.", f"There is no attempt {attempt}.", "")
    return f"{job_prefix(stage)}{attempt or latest}"
