"""``casa diff``: what sets two artifacts apart, all the way back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.dag.history.lineage import Made

Named = "A stage of the latest run, a folder, an s3:// URI, the beginning of a fingerprint, or train@DATE."


def diff(
    before: Annotated[str, typer.Argument(help=Named, metavar="BEFORE")],
    after: Annotated[str, typer.Argument(help=Named, metavar="AFTER")],
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Show what sets two artifacts apart: settings, code and inputs all the way back, and their results.

    Compare two runs by their reports, which have every stage as input.

    Examples:

      casa diff 4a84d1 fb1adc          two models

      casa diff 9c01fe report          an earlier run, and the latest

      casa diff train@2026-11-30 train@latest

      casa diff runs/train/4a84… s3://bucket/runs/train/fb1a… --json
    """
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.dag.history.lineage import compare, lineage

    one, other = (lineage(find_artifact(name, store)) for name in (before, after))
    found = list(compare(one, other))
    results = _results(one, other)
    if json_:
        listed = [
            {
                "role": own.role,
                "before": own.before.fingerprint,
                "after": own.after.fingerprint,
                "changes": [asdict(change) for change in own.changes],
            }
            for own in found
        ]
        print_json({"differences": listed, "results": results})
        return
    if not found:
        print(f"{one.name} and {other.name} are the same work.")
        return
    for own in found:
        if own.changes:
            print(f"{own.role or 'itself'}: {own.before.name} → {own.after.name}")
        for change in own.changes:
            print(f"  {change}")
    if not any(own.changes for own in found):
        print("No setting, input or code version differs, as far back as both are kept.")
    for name, (left, right) in results.items():
        print(f"result {name}: {left} → {right}")


def _results(before: Made, after: Made) -> dict[str, tuple[Any, Any]]:
    """The numbers of both summaries that differ."""
    from pipelines.dag.changes import numbers

    left, right = (numbers(one.manifest["summary"] if one.manifest else {}) for one in (before, after))
    return {name: (left[name], right[name]) for name in left if name in right and left[name] != right[name]}
