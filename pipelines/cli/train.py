"""``casa train`` and ``casa export``: from a recipe, or a training checkpoint, to a model."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import DEFAULT_RECIPE, JsonOption, RecipeArgument, SetOption, print_json

if TYPE_CHECKING:
    from pipelines.storage.uri import Folder


class Scale(StrEnum):
    """Of a dry run."""

    small = "small"
    full = "full"


KINDS = frozenset({"corpus", "clean", "pack", "train"})
"""Kinds of stages that a trained model takes."""


def train(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    json_: JsonOption = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
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

    from pipelines.cli.session import open_run
    from pipelines.cli.walk import walk

    opened = open_run(recipe, set_ or ())
    # The blind baseline is the evaluation's, which compares with it.
    stages = [s for s in opened.stages if s.spec.kind in KINDS and s.spec.settings.get("images") is not False]
    manifests = walk(replace(opened, stages=stages), f"casa train {recipe}", as_json=json_, plain=plain)
    trained = next(stage for stage in stages if stage.name == "train")
    result = {"model": str(trained.folder / "model"), **manifests["train"]["summary"]}
    if json_:
        print_json({"event": "result", **result})
    else:
        print(f"\nModel: {result['model']}")


def _dry_run(recipe: str, overrides: Sequence[str], scale: str, *, as_json: bool) -> None:
    import os
    from dataclasses import asdict
    from typing import cast

    from pipelines.cli.show_training import show_dry_run, show_step
    from pipelines.recipe import load_recipe

    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not _has_gpu() else "cuda")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's folder of checkpoints (local or s3://), or the recipe of a run.", metavar="SOURCE"
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write.", file_okay=False)],
    step: Annotated[
        int | None, typer.Option(help="Steps done; the newest checkpoint where not given.", min=1)
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a model of a training checkpoint: a folder that `casa`, and transformers, load.

    Works while the run goes on and after it, on one machine, whatever number of workers trained.

    Examples:

      casa export quickstart model-at-800 --step 800

      casa export runs/checkpoints/4a84… model

      casa export s3://bucket/checkpoints/4a84… model
    """
    from pipelines.train.checkpoint.export import export as write

    saved = write(_checkpoints(source, set_ or ()), output, step)
    if json_:
        print_json({"model": str(output), "step": saved.steps_done, "checkpoint": str(saved.folder)})
    else:
        print(f"{output}: the model after {saved.steps_done} steps, from {saved.folder}")


def _checkpoints(source: str, overrides: Sequence[str]) -> Folder:
    """The folder that is meant: itself, one of its steps, or the one of a recipe's train stage."""
    from casa_core.errors import ConfigError
    from pipelines.storage.uri import open_folder
    from pipelines.train.checkpoint.save import COMPLETE

    if "://" in source or Path(source).is_dir():
        folder = open_folder(source)
        if (folder / COMPLETE).is_file():
            raise ConfigError(
                f"{source} is one step of a run.",
                "What training leaves alone lies beside the steps, in the folder above.",
                f"casa export {folder.parent} … --step {int(folder.name.rpartition('-')[2])}",
            )
        return folder
    from pipelines.cli.session import open_run
    from pipelines.train.run import checkpoint_root

    opened = open_run(source, overrides)
    stage = next(stage for stage in opened.stages if stage.name == "train")
    return checkpoint_root(stage.spec.placement, stage.fingerprint)
