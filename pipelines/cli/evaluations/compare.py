"""``casa compare``: two evaluations on the same questions."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.shared.options import JsonOption
from pipelines.cli.show.format import nearby, print_json

if TYPE_CHECKING:
    from pipelines.evaluate.comparison import Compared


def compare(
    a: Annotated[str, typer.Argument(help="Output of `casa evaluate`, or a benchmark's folder in it.")],
    b: Annotated[str, typer.Argument(help="Another, on the same questions.")],
    output: Annotated[
        str | None, typer.Option(help="File of the page; by default against-B.html in A.", metavar="FILE")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compare two evaluations: paired differences, what changed, and what else differs between them.

    Each benchmark that both have is tested on its own: by McNemar's exact test where answers are right or
    wrong, else by sign flips. Other questions, prompts or rules of scoring are refused.

    Examples:

      casa compare runs/evaluations/helium runs/evaluations/qwen

      casa compare runs/evaluations/helium/chartqa runs/evaluations/qwen/chartqa --json
    """
    from pipelines.evaluate.comparison import compare_folders
    from pipelines.evaluate.pages.comparison import render
    from pipelines.storage.atomic import write_whole
    from pipelines.storage.uri import open_folder

    first, second = open_folder(a).absolute(), open_folder(b).absolute()
    found, others = compare_folders(first, second)
    names = _names(found[0], a, b)
    page = open_folder(output).absolute() if output else first / f"against-{second.name}.html"
    write_whole(page, render(found, names), parents=True)
    if json_:
        print_json(
            {
                "a": names[0],
                "b": names[1],
                "benchmarks": [_plain(one) for one in found],
                "only_in_one": others,
                "page": str(page),
            }
        )
        return
    _present(found, names)
    if others:
        print(f"Only one of the two has {', '.join(others)}.")
    print(f"Changed questions: {nearby(str(page))}")


def _names(one: Compared, a: str, b: str) -> tuple[str, str]:
    """The models' names, or the folders where both have one name."""
    names = one.first.result.checkpoint["name"], one.second.result.checkpoint["name"]
    return names if names[0] != names[1] else (a, b)


def _plain(one: Compared) -> dict[str, Any]:
    first, second = one.scores
    samples = one.first.samples
    return {
        "benchmark": one.first.result.benchmark,
        "metric": first.metric,
        "version": first.version,
        "unit": first.unit,
        "questions": one.first.result.questions,
        "a": asdict(first),
        "b": asdict(second),
        **asdict(one.comparison),
        "changed": [samples[at]["question_id"] for at in one.changed],
        "facts": {name: list(pair) for name, pair in one.facts.items()},
    }


def _present(found: Sequence[Compared], names: tuple[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pipelines.evaluate.pages.comparison import HEAD, cells

    table = Table(title=f"A: {names[0]}\nB: {names[1]}", title_justify="left")
    for column in HEAD:
        table.add_column(column, justify="left" if column in ("benchmark", "unit", "test") else "right")
    for one in found:
        table.add_row(*cells(one))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    differing: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in found:
        for name, pair in one.facts.items():
            differing[name, *pair].append(one.first.result.title)
    for (name, *pair), titles in differing.items():
        where = "" if len(titles) == len(found) else f" ({', '.join(titles)})"
        console.print(
            f"{name}{where}: {_short(pair[0])} and {_short(pair[1])}", markup=False, highlight=False
        )


def _short(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= 48 else f"{line[:45]}..."
