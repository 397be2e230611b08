"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    Path, typer.Option("--store", help="Folder of artifacts, where.store of the recipe.", file_okay=False)
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="The endpoint, http://host:port; by default that of the store's latest run."),
]
DEFAULT_RECIPE = "quickstart"
DEFAULT_STORE = Path("runs")
