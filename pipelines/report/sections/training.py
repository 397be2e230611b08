"""Section on training: loss by kind of step, learning rate, tokens and time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.html.charts import Series, legend, loss_chart, moving_mean
from pipelines.html.layout import figure, section, tile, tiles
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run, Stage
from pipelines.text_format import duration, number

LAST = 30
"""Number of last steps whose mean is the final loss."""

KINDS = {"image": "picture sequences", "video": "video sequences"}

Steps = Sequence[Mapping[str, Any]]


def training(run: Run) -> Html:
    """Loss curves and totals; one sentence for a run without training."""
    stage = run.get("train")
    steps = _steps(stage)
    if not steps:
        return section("Training", "This run trained no model, or its steps were not recorded.")
    blind = _steps(run.get("train-blind"))
    series = [_series(kind, steps) for kind in KINDS if any(step["kind"] == kind for step in steps)]
    if blind:
        points = [(step["step"], step["loss"]) for step in blind]
        series.append(
            Series(label="blind twin", style="blind", points=points, smooth=_smooth(points), dots=False)
        )
    rate = [(step["step"], step["learning_rate"]) for step in steps]
    lead = (
        f"Loss per trained token over {len(steps)} steps: every step a dot, lines are moving means. "
        "Steps of packed pictures and steps of video alternate."
    )
    chart = loss_chart(series, rate, label="training loss over steps")
    keys = legend([(one.style, one.label) for one in series])
    drawing = figure("Loss (logarithmic scale)", tag("div", chart, class_="scroll"), keys)
    return section("Training", lead, _accounts(steps), drawing)


def _steps(stage: Stage | None) -> list[dict[str, Any]]:
    path = stage.folder / "metrics.jsonl" if stage else None
    if path is None or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _series(kind: str, steps: Steps) -> Series:
    points = [(step["step"], step["loss"]) for step in steps if step["kind"] == kind]
    return Series(label=KINDS[kind], style=kind, points=points, smooth=_smooth(points))


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A window that follows the number of points, so that few points are not flattened."""
    return moving_mean(points, min(max(len(points) // 25, 5), 31))


def _accounts(steps: Steps) -> Html:
    """Totals and rates; the rates leave out the waiting that is not part of a step."""
    seconds = sum(step["seconds"] for step in steps)
    text, image, trained = (
        sum(step[name] for step in steps) for name in ("text_tokens", "image_tokens", "trained_tokens")
    )
    last = [step["loss"] for step in steps[-LAST:]]
    items = [
        tile(f"{sum(last) / len(last):.3f}", "final loss", f"mean of the last {len(last)} steps"),
        tile(number(text), "text tokens", f"{number(trained)} of them trained"),
        tile(number(image), "image tokens"),
    ]
    if seconds > 0:
        wait = sum(step["loader_wait_s"] for step in steps) / seconds
        items += [
            tile(
                number(text / seconds),
                "text tokens per second",
                f"and {number(image / seconds)} image tokens",
            ),
            tile(
                duration(seconds),
                "in steps",
                f"{1000 * seconds / len(steps):.0f} ms per step, {wait:.1%} waiting for data",
            ),
        ]
    return tiles(*items)
