"""``casa run``: from a recipe to its report and endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.shared.options import (
    DEFAULT_RECIPE,
    JsonOption,
    PlainOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    overrides_of,
)


def run(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    store: RecipeStoreOption = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage; what it needs is made first.")
    ] = None,
    inputs_within: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="With --until: wait so long for other runs to make what it needs.", min=1
        ),
    ] = None,
    json_: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Run a recipe: whatever is not done yet, in order, each stage as a Ray job.

    Stages already made are skipped. Interrupted or killed, the same command goes on where it was: jobs that
    still run are watched again, and training continues from its last checkpoint.

    Examples:

      casa run                                     six to seven minutes, 2 cores

      casa run quickstart --set train.steps=400    trains again; data is kept

      casa run my.yaml --set where.ray.address=http://head:8265

      casa run quickstart --store /data/runs       where artifacts go, instead of runs

      casa run --until pack                        the packed data, and nothing of training

      casa run --json | jq 'select(.event == "result")'
    """
    from pipelines.cli.shared.run_handle import open_run, run_stages
    from pipelines.cli.show.results import show_results

    opened = open_run(recipe, overrides_of(set_, store))
    if until is not None:
        from pipelines.cli.shared.part import await_inputs, up_to

        opened = up_to(opened, until)
        if inputs_within is not None:
            await_inputs(opened.stages[:-1], inputs_within)
    manifests = run_stages(opened, f"casa run {recipe}", as_json=json_, plain=plain)
    show_results(opened.recipe, opened.stages, manifests, as_json=json_)
