"""``casa gc``: what of a store nothing refers to any more, and its removal."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json


def gc(
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="An artifact that stays, with all it was made of: a folder, the beginning of a "
            "fingerprint, or train@DATE. May be repeated.",
            metavar="ARTIFACT",
        ),
    ] = None,
    days: Annotated[float, typer.Option(help="What is younger stays.", min=0)] = 7.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is listed only.")] = False,
    json_: JsonOption = False,
) -> None:
    """List what of a store nothing refers to, or remove it.

    The latest run stays, and what is named by --keep or younger than --days, each with all it was made of. So
    do answers of evaluations, logs, and data in a store of their own. What is being written is left alone.

    Examples:

      casa gc                          what could go, and how much it holds

      casa gc --days 0 --keep 4a84d1

      casa gc --delete
    """
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.dag.history.collection import garbage, remove

    kept = [find_artifact(name, store) for name in keep or ()]
    found = garbage(store, kept, timedelta(days=days))
    gone = list(remove(store, found)) if delete else []
    if json_:
        removed = {one.folder for one in gone}
        print_json(
            [{**asdict(one), "folder": str(one.folder), "removed": one.folder in removed} for one in found]
        )
        return
    for one in gone if delete else found:
        print(f"{one.kind:<12} {one.folder.name[:12]}  {one.bytes / 2**20:10,.1f} MiB  {one.why}")
    listed = gone if delete else found
    size = sum(one.bytes for one in listed) / 2**20
    print(f"{len(listed)} folders, {size:,.1f} MiB{' removed' if delete else ' that nothing refers to'}.")
    if left := len(found) - len(gone) if delete else 0:
        print(f"{left} are being written now, and were left alone.")
    if found and not delete:
        print("try: `casa gc --delete` removes them; --keep ARTIFACT has one stay.")
