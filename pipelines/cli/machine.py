"""``casa doctor``: is everything there?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from pipelines.cli.options import DEFAULT_STORE, JsonOption, StoreOption, print_json

MARKS = {"ok": "[green]✓", "optional": "[yellow]○", "problem": "[red]✗"}


def doctor(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Check this machine, and say what each missing part costs you. Ends with 1 if a run cannot work.

    Examples:

      casa doctor

      casa doctor --json | jq '.[] | select(.level != "ok")'
    """
    from infra.doctor import examine

    checks = examine(store)
    if json_:
        print_json([asdict(check) for check in checks])
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False)
        for check in checks:
            table.add_row(MARKS[check.level], check.name, check.found, f"[dim]{escape(check.cost)}")
            if check.level != "ok" and check.remedy:
                table.add_row("", "", "", f"[dim]→ {escape(check.remedy)}")
        Console().print(table)
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(1)
