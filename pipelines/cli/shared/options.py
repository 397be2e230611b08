"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.storage.uri import Folder, open_folder


def parse_store(value: str | Folder) -> Folder:
    """A store that an option names, as an absolute path or on S3.

    Raises:
        BadParameter: If it is a file.
    """
    folder = open_folder(value).absolute()
    if isinstance(folder, Path) and folder.is_file():
        raise typer.BadParameter(f"{value} is a file.")
    return folder


RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's name (quickstart, …) or a YAML file.", metavar="RECIPE")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: train.steps=200. May be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PlainOption = Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")]
StoreOption = Annotated[
    Any,
    typer.Option(
        "--store",
        help="where.store of the recipe: a folder, or s3://bucket/prefix.",
        parser=parse_store,
        metavar="FOLDER",
    ),
]
"""A :data:`~pipelines.storage.uri.Folder`."""
RecipeStoreOption = Annotated[
    Any,
    typer.Option(
        "--store",
        help="Short for --set where.store=FOLDER: a folder, or s3://bucket/prefix.",
        parser=parse_store,
        metavar="FOLDER",
    ),
]
"""A :data:`~pipelines.storage.uri.Folder` or ``None``, for :func:`overrides_of`."""
UrlOption = Annotated[
    str | None,
    typer.Option(help="The endpoint, http://host:port; by default that of the store's latest run."),
]
RatesOption = Annotated[
    Path | None,
    typer.Option(help="Measured rates as JSON.", dir_okay=False, rich_help_panel="The machines"),
]
RateOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="What a core does per second, instead of the measured rate: clean_megapixels, "
        "video_megapixels (of frames used), encode_tokens, or pack_samples. May be repeated.",
        rich_help_panel="The machines",
    ),
]
DEFAULT_RECIPE = "quickstart"
DEFAULT_STORE = Path("runs")


def overrides_of(set_: list[str] | None, store: Folder | None) -> list[str]:
    """The settings that a command lays over its recipe: those of `--set`, and the store of `--store`."""
    return [*(set_ or ()), *([f"where.store={store}"] if store is not None else [])]
