"""What ``casa run`` says at its end: the results, the report, the endpoint, and what to do next."""

from __future__ import annotations

import json
import shutil
import sys
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
            if name == "headline":
                continue  # said when the stage ended, and each of its numbers follows
            table.add_row(name.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}")
        console.print(table)
    casa, store = _this_command(), _store_option(opened)
    lines = {
        "endpoint": found["endpoint"],
        "live page": found["live_page"],
        "ask": f'{casa} ask PICTURE "what color is the shape?"{store}',
        "caption": f"{casa} caption CLIP.mp4{store}",
        "stop": f"{casa} stop{store}",
    }
    text = Text("\n").join(
        Text.assemble((f"{label:<10} ", "bold"), value) for label, value in lines.items() if value
    )
    console.print(Panel(text, title=opened.recipe.name, title_align="left", expand=False))
    if report := found["report"]:
        # Outside the frame and never wrapped, so that a terminal can open it and a person can copy it.
        console.print(f"report: {_nearby(Path(report))}", soft_wrap=True, highlight=False)


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


def _this_command() -> str:
    """``casa`` as the reader can type it here: the bare name where the shell finds it."""
    typed = Path(sys.argv[0])
    found = shutil.which("casa")
    return "casa" if typed.name != "casa" or (found and Path(found).samefile(typed)) else str(_nearby(typed))


def _nearby(path: Path) -> Path:
    """The path relative to the working folder where it lies below it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
