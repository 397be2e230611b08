"""What ``casa run`` says at its end: the results, the report, the endpoint, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.cli.headline import headline
from pipelines.cli.session import OpenRun


def show_results(opened: OpenRun, manifests: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    """Print results, where to find them, and how to go on."""
    found = collect(opened, manifests)
    if as_json:
        print(json.dumps({"event": "result", **found}, ensure_ascii=False), flush=True)
        return
    console = Console()
    console.print()
    if results := found["results"]:
        table = Table(title="Held-out results", title_justify="left", box=None, show_header=False)
        for name, value in results.items():
            table.add_row(name.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}")
        console.print(table)
    lines = [("report", found["report"]), ("endpoint", found["endpoint"]), ("live page", found["live_page"])]
    text = Text()
    for label, value in lines:
        if value:
            text.append(f"{label:<10} ", style="bold").append(f"{value}\n")
    text.append(f"{'ask':<10} ", style="bold").append('casa ask PICTURE "What colour is it?"\n')
    text.append(f"{'stop':<10} ", style="bold").append(f"casa stop{_store_option(opened)}")
    console.print(Panel(text, title=opened.recipe.name, title_align="left", expand=False), soft_wrap=True)


def collect(opened: OpenRun, manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The run's results as plain JSON."""
    kinds = {stage.spec.kind: stage.name for stage in opened.stages}
    evaluate = manifests[kinds["evaluate"]]["summary"] if "evaluate" in kinds else {}
    report = manifests[kinds["report"]]["summary"].get("path", "") if "report" in kinds else ""
    deployed = "deploy" in kinds
    return {
        "recipe": opened.recipe.name,
        "results": {name: value for name, value in evaluate.items() if isinstance(value, int | float | str)},
        "report": report,
        "endpoint": opened.endpoint if deployed else "",
        "live_page": f"{opened.endpoint}/" if deployed else "",
        "stages": {name: {"headline": headline(m["summary"])} for name, m in manifests.items()},
        "artifacts": {stage.name: str(stage.folder) for stage in opened.stages},
    }


def _store_option(opened: OpenRun) -> str:
    store = opened.recipe.where.store
    return "" if Path(store) == Path("runs") else f" --store {store}"
