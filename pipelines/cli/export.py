"""``casa export``: from a training checkpoint to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import JsonOption, SetOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.storage.uri import Folder


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
    from pipelines.cli.shared.quiet import quiet_libraries

    quiet_libraries()
    from pipelines.train.checkpoint.export import export as write

    saved = write(_checkpoints(source, set_ or ()), output, step)
    if json_:
        print_json({"model": str(output), "step": saved.steps_done, "checkpoint": str(saved.folder)})
    else:
        print(f"{output}: the model after {saved.steps_done} steps, from {saved.folder}")


def _checkpoints(source: str, overrides: Sequence[str]) -> Folder:
    """The folder of checkpoints: the one named, or that of a recipe's train stage."""
    from casa_core.errors import ConfigError
    from pipelines.storage.uri import open_folder
    from pipelines.train.checkpoint.save import COMPLETE

    if "://" in source or Path(source).is_dir():
        folder = open_folder(source)
        if (folder / COMPLETE).is_file():
            raise ConfigError(
                f"{source} is one step of a run.",
                "What training leaves alone lies beside the steps, in the folder above.",
                f"Run `casa export {folder.parent} … --step {int(folder.name.rpartition('-')[2])}`.",
            )
        return folder
    from pipelines.cli.shared.run_handle import open_run
    from pipelines.train.run import checkpoint_root

    opened = open_run(source, overrides)
    stage = next(stage for stage in opened.stages if stage.name == "train")
    return checkpoint_root(stage.spec.placement, stage.fingerprint)
