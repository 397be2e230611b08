"""``casa run``: from a recipe to its report and endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.options import DEFAULT_RECIPE, JsonOption, RecipeArgument, SetOption


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
    from pipelines.cli.walk import walk

    opened = open_run(recipe, set_ or ())
    manifests = walk(opened, f"casa run {recipe}", as_json=json_, plain=plain)
    show_results(opened, manifests, as_json=json_)
