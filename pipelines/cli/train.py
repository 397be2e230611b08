"""``casa train``: from a recipe to a trained model, and no further."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

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
from pipelines.cli.show.format import print_json, print_json_line


class Scale(StrEnum):
    """Size of the model in a dry run."""

    small = "small"
    full = "full"


def train(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    store: RecipeStoreOption = None,
    json_: JsonOption = False,
    plain: PlainOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Two real steps on random data, in this process."),
    ] = False,
    scale: Annotated[
        Scale, typer.Option(help="Of a dry run: the real size, or the same layers at a width for a CPU.")
    ] = Scale.small,
) -> None:
    """Train a recipe's model: prepare its data, train, and no further.

    The same stages as those of `casa run`, which later finds them done. Interrupted or killed, the same
    command goes on from the last checkpoint, also on another number of workers.

    Examples:

      casa train quickstart

      casa train casa-qwen-video --set where.train.workers=64

      casa train my.yaml --set where.train.workers=[2,8]

      casa train casa-qwen-image --dry-run
    """
    if dry_run:
        _dry_run(recipe, set_ or (), scale.value, as_json=json_)
        return
    from dataclasses import replace

    from pipelines.cli.shared.run_handle import open_run, run_stages
    from pipelines.dag.plan import DATA_KINDS

    opened = open_run(recipe, overrides_of(set_, store), DATA_KINDS | {"train"})
    # The blind baseline is the evaluation's, which compares with it.
    stages = [stage for stage in opened.stages if stage.spec.settings.get("images") is not False]
    opened = replace(opened, stages=stages)
    manifests = run_stages(opened, f"casa train {recipe}", as_json=json_, plain=plain)
    trained = next(stage for stage in stages if stage.name == "train")
    result = {"model": str(trained.folder / "model"), **manifests["train"]["summary"]}
    if json_:
        print_json_line({"event": "result", **result})
    else:
        print(f"\nModel: {result['model']}")


def _dry_run(recipe: str, overrides: Sequence[str], scale: str, *, as_json: bool) -> None:
    print("Taking two steps on random data: half a minute …", file=sys.stderr, flush=True)
    from pipelines.waits import announced

    with announced("Still taking two steps", first_s=9.0, every_s=9.0):
        _take_steps(recipe, overrides, scale, as_json=as_json)


def _take_steps(recipe: str, overrides: Sequence[str], scale: str, *, as_json: bool) -> None:
    from dataclasses import asdict
    from typing import cast

    from pipelines.cli.shared.quiet import quiet_libraries
    from pipelines.cli.show.training import show_dry_run, show_step
    from pipelines.recipe import load_recipe

    quiet_libraries()
    from pipelines.cost.dry_run import DryRun
    from pipelines.cost.dry_run import dry_run as run

    for number, found in enumerate(run(load_recipe(recipe, overrides), cast(Any, scale)), start=1):
        if as_json:
            if isinstance(found, DryRun):
                print_json(asdict(found))
        elif isinstance(found, DryRun):
            show_dry_run(found)
        else:
            show_step(found, number)
