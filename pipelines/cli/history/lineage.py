"""``casa lineage``: what an artifact was made of, back to the raw files."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import headline, print_json

if TYPE_CHECKING:
    from rich.tree import Tree

    from pipelines.dag.history.lineage import Made

WIDTH = 160
"""Columns where there is no terminal."""


def lineage(
    artifact: Annotated[
        str,
        typer.Argument(
            help="A stage of the latest run, a folder, an s3:// URI, the beginning of a fingerprint, or "
            "train@DATE (UTC; train@latest).",
            metavar="ARTIFACT",
        ),
    ] = "deploy",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Show what an artifact was made of: every stage back to the raw files, with its date and result.

    Without a name, the latest run's endpoint.

    Examples:

      casa lineage                     from the endpoint to the raw files

      casa lineage train

      casa lineage 4a84d1 --json
    """
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.dag.history.lineage import lineage as made_of

    found = made_of(find_artifact(artifact, store))
    if json_:
        print_json(_as_json(found))
        return
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(_line(found))
    _grow(tree, found, set())
    Console(width=None if sys.stdout.isatty() else WIDTH).print(tree)


def _grow(tree: Tree, made: Made, shown: set[str]) -> None:
    for role, own in made.inputs.items():
        again = own.fingerprint in shown
        branch = tree.add(
            f"[dim]{role}:[/] {own.name}, see above" if again else f"[dim]{role}:[/] {_line(own)}"
        )
        shown.add(own.fingerprint)
        if not again:
            _grow(branch, own, shown)
    if made.manifest is not None and not made.inputs:
        for name, value in made.manifest.get("location", {}).items():
            tree.add(f"[dim]raw {name}:[/] {value}")


def _line(made: Made) -> str:
    if made.manifest is None:
        return f"[yellow]{made.name}: no longer in the store[/]"
    from rich.markup import escape

    from pipelines.dag.history.aliases import alias_of

    adopted = made.manifest["provenance"].get("adopted")
    origin = f"  [yellow]adopted from {escape(adopted['from'])}[/]" if adopted else ""
    line = escape(headline(made.manifest["summary"]))
    return f"[bold]{made.name}[/]  [dim]{escape(alias_of(made.manifest))}[/]{origin}  {line}"


def _as_json(made: Made) -> dict[str, Any]:
    from pipelines.dag.history.aliases import alias_of

    manifest = json.loads(json.dumps(made.manifest)) or {}
    kept = ("kind", "what", "location", "code_version", "content_digest", "summary", "provenance")
    return {
        "fingerprint": made.fingerprint,
        "alias": alias_of(manifest) if manifest else None,
        "folder": None if made.folder is None else str(made.folder),
        **{name: manifest[name] for name in kept if name in manifest},
        "inputs": {role: _as_json(own) for role, own in made.inputs.items()},
    }
