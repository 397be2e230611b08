"""``casa plan``: what a run would do, or what its training takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import (
    DEFAULT_RECIPE,
    JsonOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    overrides_of,
)
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.dag.plan import PlannedStage


def plan(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    store: RecipeStoreOption = None,
    json_: JsonOption = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="As a tree: under each stage what it is made from.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file too.", metavar="FILE")] = None,
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

      casa plan --tree --svg plan.svg

      casa plan casa-qwen-image --training --gpu H100 --gpus 64
    """
    if training:
        _plan_training(recipe, set_ or (), gpu, gpus, as_json=json_)
        return
    from pipelines.cli.shared.run_handle import open_run
    from pipelines.cli.show.plan import drawing, show_plan
    from pipelines.storage.atomic import write_whole

    opened = open_run(recipe, overrides_of(set_, store))
    stages = [_with_state(stage) for stage in opened.stages]
    if svg is not None:
        write_whole(svg.absolute(), drawing(stages, opened.recipe.name) + "\n", parents=True)
    show_plan(stages, as_json=json_, tree=tree)


def _plan_training(
    recipe: str, overrides: Sequence[str], gpu: str, gpus: int | None, *, as_json: bool
) -> None:
    from pipelines.waits import announced

    with announced(
        "Working out what training takes: small models of its layers are run once", first_s=1.5, every_s=5.0
    ):
        from casa_core.hardware import find_gpu
        from pipelines.cli.show.training import estimate_json, show_estimate
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
    from pipelines.dag.run import held_state

    if not stage.spec.state:
        return stage
    if held_state(stage) is not None:
        return replace(stage, status="done", reason="running, and as asked for")
    return replace(stage, status="run", reason="not running, not as asked for, or not recorded")
