"""A plan on the terminal, as a table or a tree, and as a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from pipelines.cli.show.format import print_json
from pipelines.dag.plan import PlannedStage
from pipelines.html.graph import Node, direct_edges, draw

MARKS = {"done": "[green]✓ done", "run": "[yellow]→ run", "check": "[cyan]? check"}
LINE = 23
"""Characters on a line of a box."""
ROOM = 50
"""Columns beside the stages' names, without which a table has no room for fingerprints."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .boxtitle { font-weight: 600 }
.boxline { font-size: 11.5px; fill: #666 } .edge { fill: none; stroke: #bbb; stroke-width: 1.6 }
.box { fill: #f6f6f4; stroke-width: 1.6 } .box-done { stroke: #2e7d4f } .ground { fill: #fff }
.box-run { stroke: #c8553d; stroke-dasharray: 5 3 } .box-check { stroke: #1b6ca8; stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .boxline { fill: #999 } .edge { stroke: #555 } .ground { fill: #16181c }
  .box { fill: #1f2228 }
  .box-done { stroke: #6cc591 } .box-run { stroke: #ee8b74 } .box-check { stroke: #6cb4ee }
}
"""


def show_plan(stages: Sequence[PlannedStage], *, as_json: bool, tree: bool = False) -> None:
    """Print a plan: one line for each stage, in the order in which they run; as a tree; or as JSON."""
    if as_json:
        print_json([_as_json(stage) for stage in stages])
    elif tree:
        _show_tree(stages)
    else:
        _show_table(stages)


def _as_json(stage: PlannedStage) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "kind": stage.spec.kind,
        "fingerprint": stage.fingerprint,
        "code_version": stage.code_version,
        "status": stage.status,
        "reason": stage.reason,
        "changes": [asdict(change) for change in stage.changes],
        "inputs": stage.spec.inputs,
        "artifact": str(stage.folder),
    }


def _show_table(stages: Sequence[PlannedStage]) -> None:
    console = Console()
    wide = console.width - max(len(stage.name) for stage in stages) >= ROOM
    table = Table(box=None, header_style="bold")
    for column in ("stage", *(("fingerprint", "code") if wide else ()), "", "why"):
        table.add_column(column, no_wrap=column != "why")
    for stage in stages:
        identity = (stage.fingerprint[:12], stage.code_version) if wide else ()
        table.add_row(stage.name, *identity, MARKS[stage.status], stage.reason)
    console.print(table)


def _show_tree(stages: Sequence[PlannedStage]) -> None:
    """What nothing needs at the root, and under each stage those it is made from, each in full once."""
    below: dict[str, list[str]] = {stage.name: [] for stage in stages}
    for parent, node in direct_edges(_nodes(stages)):
        below[node.name].append(parent)
    named = {stage.name: stage for stage in stages}
    needed = {name for names in below.values() for name in names}
    shown: set[str] = set()

    def add(tree: Tree, name: str) -> None:
        stage = named[name]
        if name in shown:
            tree.add(f"{name} [dim](above)")
            return
        shown.add(name)
        branch = tree.add(f"[bold]{name}[/]  {MARKS[stage.status]}[/]  {stage.reason}")
        for inner in below[name]:
            add(branch, inner)

    root = Tree("", hide_root=True)
    for stage in stages:
        if stage.name not in needed:
            add(root, stage.name)
    Console().print(root)


def drawing(stages: Sequence[PlannedStage], name: str) -> str:
    """The plan as an SVG document, with colours for light and dark pages.

    Args:
        name: The recipe's.
    """
    label = f"plan of {name}: {sum(stage.status != 'done' for stage in stages)} of {len(stages)} to run"
    return draw(_nodes(stages), label=label, style=STYLE)


def _nodes(stages: Sequence[PlannedStage]) -> list[Node]:
    return [
        Node(
            name=stage.name,
            lines=_lines(stage),
            style=stage.status,
            parents=tuple(dict.fromkeys(stage.spec.inputs.values())),
            tip=f"{stage.name} {stage.fingerprint[:12]}: {stage.reason}",
        )
        for stage in stages
    ]


def _lines(stage: PlannedStage) -> tuple[str, ...]:
    """The first value that changed and how, else the reason as far as two lines hold it."""
    own = [change for change in stage.changes if not change.name.startswith("input ")]
    if own:
        more = f" +{len(own) - 1}" if len(own) > 1 else ""
        return own[0].name, textwrap.shorten(
            f"{own[0].before} → {own[0].after}", LINE, placeholder="…"
        ) + more
    return tuple(textwrap.wrap(stage.reason, LINE, max_lines=2, placeholder=" …"))
