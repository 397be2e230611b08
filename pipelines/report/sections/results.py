"""Section of scores: every benchmark's results beside the baselines, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.html.charts import Bar, grouped_bars, legend
from pipelines.html.layout import figure, section, table, tile, tiles
from pipelines.html.tags import Html, join, tag
from pipelines.report.sections.run_artifacts import Run

STYLES = {"model": "model", "blind": "blind"}
"""Evaluated model → colour class; fixed baselines have ``baseline``."""

NAMES = {
    "blind": "blind: the same recipe, trained without images",
    "chance": "chance: always the most frequent answer",
    "silent": "silent: never says a word",
}


COLUMNS = {"yes_no": "yes/no"}
"""Column's name in the corpus → name to print, where they differ."""


def results(run: Run) -> Html:
    """Score charts and tables; one sentence for a run without evaluation."""
    stage = run.get("evaluate")
    boards = stage.json("metrics.json") if stage else None
    if not boards:
        return section("Results", "This run has no evaluation, so there is nothing to claim.")
    lead = (
        "Held-out data only. Whiskers are 95 % confidence intervals. A model that learned to see must leave "
        "both its blind twin and the fixed guess far behind."
    )
    charts = [_chart(source, board, run.model_name) for source, board in boards.items()]
    return section("Results", lead, tag("div", *charts, class_="columns"))


def headline(run: Run) -> Html:
    """Tiles at the top of the page: each benchmark's headline."""
    stage = run.get("evaluate")
    boards: Mapping[str, Any] = (stage.json("metrics.json") if stage else None) or {}
    items = []
    for source, board in boards.items():
        model, *others = board["lines"]
        cell = model["cells"][board["headline"]]
        beside = ", ".join(f"{o['name']} {100 * o['cells'][board['headline']]['value']:.1f}" for o in others)
        label = f"{board['title']} ({source}): {board['measure']}"
        items.append(
            tile(tag("span", f"{100 * cell['value']:.1f}", tag("i", "%")), label, beside, style="big")
        )
    return tiles(*items) if items else Html()


def _chart(source: str, board: Mapping[str, Any], model_name: str) -> Html:
    lines, columns, headline_column = board["lines"], board["columns"], board["headline"]
    groups = []
    for column in columns:
        bars = [_bar(line, column, model_name) for line in lines if column in line["cells"]]
        groups.append((_column(column), bars))
    title = tag("span", tag("b", board["title"]), " ", tag("small", f"{source}: {board['measure']}"))
    chart = grouped_bars(
        groups, label=f"{board['title']}: {board['measure']}", emphasised=_column(headline_column)
    )
    keys = legend([(_style(line["name"]), _label(line["name"], model_name)) for line in lines])
    rows = [
        [model_name if line["name"] == "model" else line["name"], *(_cell(line, c) for c in columns)]
        for line in lines
    ]
    numbers = table(["", *map(_column, columns)], rows, numeric=range(1, len(columns) + 1))
    note = "; ".join(board["notes"]) + "."
    return figure(title, tag("div", chart, class_="scroll"), keys, numbers, _warning(board), note=note)


def _warning(board: Mapping[str, Any]) -> Html:
    """Names what the model may answer without looking."""
    columns = [_column(name) for name in board.get("not_above_blind", ())]
    if not columns:
        return Html()
    text = (
        f"Not above the blind twin: {', '.join(columns)}. Nothing shows that the model looks at the pictures."
    )
    return tag("p", text, class_="warning")


def _column(name: str) -> str:
    return COLUMNS.get(name, name.replace("_", " "))


def _style(name: str) -> str:
    return STYLES.get(name, "baseline")


def _label(name: str, model_name: str) -> str:
    return model_name if name == "model" else NAMES.get(name, name)


def _bar(line: Mapping[str, Any], column: str, model_name: str) -> Bar:
    cell = line["cells"][column]
    tip = f"{_label(line['name'], model_name)}\n{column}: {_interval(cell)}\n{cell['count']} items"
    return Bar(value=cell["value"], low=cell["low"], high=cell["high"], style=_style(line["name"]), tip=tip)


def _cell(line: Mapping[str, Any], column: str) -> Html:
    """The value, and its interval on a line of its own."""
    cell = line["cells"].get(column)
    if cell is None:
        return Html()
    interval = "" if cell["low"] == cell["high"] else f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}"
    return join([f"{100 * cell['value']:.1f} %", tag("small", interval)])


def _interval(cell: Mapping[str, Any]) -> str:
    value = f"{100 * cell['value']:.1f} %"
    if cell["low"] == cell["high"]:
        return value
    return f"{value} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
