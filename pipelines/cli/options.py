"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's name (quickstart, …) or a YAML file.", metavar="RECIPE")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: train.steps=200. May be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
StoreOption = Annotated[
    Path, typer.Option("--store", help="Folder of artifacts, where.store of the recipe.", file_okay=False)
]
DEFAULT_RECIPE = "quickstart"
DEFAULT_STORE = Path("runs")


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str), flush=True)
