"""``casa run``: from a recipe to its report and endpoint."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipelines.cli.options import DEFAULT_RECIPE, JsonOption, RecipeArgument, SetOption

INTERRUPTED = 130


def run(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    json_: JsonOption = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
) -> None:
    """Run a recipe: whatever is not done yet, in order, each stage as a Ray job.

    Stages already made are skipped. Interrupted or killed, the same command goes on where it was: jobs that
    still run are watched again, and training continues from its last checkpoint.

    Examples:

      casa run                                     about ten minutes, 2 cores

      casa run quickstart --set train.steps=400    trains again; data is kept

      casa run my.yaml --set where.ray.address=http://head:8265

      casa run --json | jq 'select(.event == "result")'
    """
    from pipelines.cli.results import show_results
    from pipelines.cli.session import open_run
    from pipelines.cli.watch import JsonWatcher, LiveWatcher, PlainWatcher, is_terminal
    from pipelines.dag.run import Walker

    opened = open_run(recipe, set_ or ())
    live = not (json_ or plain) and is_terminal()
    watcher = (LiveWatcher if live else JsonWatcher if json_ else PlainWatcher)(opened.stages)
    walker = Walker(
        opened.stages,
        opened.records,
        opened.cluster,
        watcher,
        parallel=opened.recipe.where.parallel_stages,
        retries=opened.recipe.where.retries,
    )
    opened.record()
    try:
        with watcher:
            manifests = walker.run()
    except KeyboardInterrupt:
        _explain_interrupt(walker.active, recipe)
        raise typer.Exit(INTERRUPTED) from None
    show_results(opened, manifests, as_json=json_)


def _explain_interrupt(active: list[str], recipe: str) -> None:
    going_on = f"Still running in Ray: {', '.join(active)}." if active else "No stage was running."
    print(
        f"\nInterrupted. {going_on}\n"
        f"  casa run {recipe}    goes on from here (repeat your --set options)\n"
        "  casa stop              ends the jobs and Ray; finished stages and checkpoints are kept",
        file=sys.stderr,
    )
