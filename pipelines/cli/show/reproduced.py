"""What ``casa reproduce`` prints: how the environment differs, and what came of making a run again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.cli.show.format import print_json_line

if TYPE_CHECKING:
    from infra.environment import Difference
    from pipelines.dag.history.reproduction import Remade
    from pipelines.storage.uri import Folder


def show_differences(found: Sequence[Difference], *, as_json: bool, what: str) -> None:
    """Print what is not as it was: a line each, with how to have it again; or one JSON object."""
    decisive = sum(one.is_decisive for one in found)
    if as_json:
        print_json_line({"event": what, "differences": [asdict(one) for one in found]})
        return
    print(f"{what}: {len(found)} differences, {decisive} of which can change a result")
    for one in found:
        mark = "!" if one.is_decisive else " "
        print(f"{mark} {one.name}: {one.recorded} → {one.present}. {one.remedy}")


def show_remade(
    remade: Sequence[Remade],
    tolerances: Mapping[Any, float],
    store: Folder,
    *,
    as_json: bool,
    is_kept: bool,
) -> None:
    """Print each artifact beside the one that was made again, or one JSON object on one line.

    Args:
        store: Where it was made again.
        is_kept: Whether that is still there.
    """
    failed = [one.stage for one in remade if not one.is_reproduced]
    if as_json:
        listed = [
            {
                **asdict(one),
                "metrics": [{**asdict(metric), "within": metric.is_within} for metric in one.metrics],
                "reproduced": one.is_reproduced,
            }
            for one in remade
        ]
        result = {"reproduced": not failed, "tolerances": dict(tolerances), "stages": listed}
        print_json_line({"event": "result", **result, "store": str(store) if is_kept else None})
        return
    table = Table(box=None, header_style="bold")
    for column in ("stage", "", "content", "metrics: recorded → now"):
        table.add_column(column)
    for one in remade:
        mark = "[green]✓" if one.is_reproduced else "[red]✗"
        table.add_row(one.stage, mark, _content(one), "\n".join(map(_metric, one.metrics)))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(
        f"Data must be equal byte for byte; a loss may differ by {tolerances['loss']:.2%} of it, a score by "
        f"{tolerances['score']:g}, a count by {tolerances['count']:g}; times and speeds are not compared."
    )
    print(f"Not reproduced: {', '.join(failed)}." if failed else "Reproduced.")
    if is_kept:
        print(f"What was made lies in {store}.")


def _content(one: Remade) -> str:
    if not one.differing:
        return "equal"
    more = f" and {len(one.differing) - 3} more" if len(one.differing) > 3 else ""
    return f"differs: {', '.join(one.differing[:3])}{more}"


def _metric(metric: Any) -> str:
    now = "absent" if metric.after is None else f"{metric.after:g}"
    return f"{'' if metric.is_within else '✗ '}{metric.name} {metric.before:g} → {now}"
