"""What ``casa run`` prints at its end: the results, the report, the endpoint, and what to do next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipelines.cli.show.format import headline, nearby, print_json_line
from pipelines.dag.plan import PlannedStage
from pipelines.recipe import Recipe
from pipelines.recipe.stages import endpoint_of, store_folder


def show_results(
    recipe: Recipe,
    stages: Sequence[PlannedStage],
    manifests: Mapping[str, Mapping[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Print results, where to find them, and how to go on; or all of it as one JSON object on one line."""
    found = collect(recipe, stages, manifests)
    if as_json:
        print_json_line({"event": "result", **found})
        return
    console = Console()
    console.print()
    if results := found["results"]:
        table = Table(title="Held-out results", title_justify="left", box=None, show_header=False)
        for name, value in results.items():
            if name == "headline":
                continue  # printed when the stage ended, and each of its numbers follows
            table.add_row(name.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}")
        console.print(table)
    casa, store = _this_command(), _store_option(recipe)
    running = bool(found["endpoint"])  # not where the run ended before its deploy stage
    lines = {
        "endpoint": found["endpoint"],
        "live page": found["live_page"],
        "ask": f'{casa} ask PICTURE "what color is the shape?"{store}' if running else "",
        "caption": f"{casa} caption CLIP.mp4{store}" if running else "",
        "report": f"{casa} report --open{store}" if "://" in found["report"] else "",
        "stop": f"{casa} stop{store}",
    }
    text = Text("\n").join(
        Text.assemble((f"{label:<10} ", "bold"), value) for label, value in lines.items() if value
    )
    console.print(Panel(text, title=recipe.name, title_align="left", expand=False))
    if report := found["report"]:
        # Outside the frame and never wrapped, so that a terminal can open it and a person can copy it.
        console.print(f"report: {nearby(report)}", soft_wrap=True, highlight=False)


def collect(
    recipe: Recipe, stages: Sequence[PlannedStage], manifests: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The run's results as plain JSON."""
    kinds = {stage.spec.kind: stage.name for stage in stages}
    evaluate = manifests[kinds["evaluate"]]["summary"] if "evaluate" in kinds else {}
    report = manifests[kinds["report"]]["summary"].get("path", "") if "report" in kinds else ""
    endpoint = endpoint_of(recipe.where) if "deploy" in kinds else ""
    return {
        "recipe": recipe.name,
        "results": {name: value for name, value in evaluate.items() if isinstance(value, int | float | str)},
        "report": report,
        "endpoint": endpoint,
        "live_page": f"{endpoint}/" if endpoint else "",
        "stages": {name: {"headline": headline(m["summary"])} for name, m in manifests.items()},
        "artifacts": {stage.name: str(stage.folder) for stage in stages},
    }


def _store_option(recipe: Recipe) -> str:
    store = recipe.where.store
    if isinstance(folder := store_folder(recipe), Path):
        return "" if Path(store) == Path("runs") else f" --store {store}"
    return f" --store {shlex.quote(str(folder))}"


def _this_command() -> str:
    """``casa`` as the reader can type it here: the bare name where the shell finds it."""
    typed = Path(sys.argv[0])
    found = shutil.which("casa")
    is_found = typed.name != "casa" or (found and Path(found).samefile(typed))
    return "casa" if is_found else nearby(typed.absolute())
