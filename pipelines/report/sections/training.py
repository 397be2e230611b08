"""Section on training: loss by kind of step, learning rate, tokens and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.html.charts import Series, legend, loss_chart, moving_mean, share_chart
from pipelines.html.layout import figure, section, tile, tiles
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run, Stage
from pipelines.text_format import duration, number
from pipelines.train.metrics import FILE, read_lines, read_scores

LAST = 30
"""Number of last steps whose mean is the final loss."""

STYLES = ("image", "video", "model")
"""Colour classes of the sources' scores."""

KINDS = {"image": "picture sequences", "video": "video sequences"}

Steps = Sequence[Mapping[str, Any]]


def training(run: Run) -> Html:
    """Loss curves and totals; one sentence for a run without training."""
    stage = run.get("train")
    steps = _steps(stage)
    if not steps:
        return section("Training", "This run trained no model, or its steps were not recorded.")
    twin = run.get("train-blind")
    blind = _steps(twin)
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
    return section("Training", lead, _accounts(steps), drawing, *_scored(stage, twin, len(steps)))


def _scored(stage: Stage | None, twin: Stage | None, steps: int) -> Iterator[Html]:
    """Held-out scores of the model while it trained, and of its blind twin; nothing where none were taken."""
    found = {
        "": read_scores(stage.folder) if stage else {},
        "blind twin, ": read_scores(twin.folder) if twin else {},
    }
    series: list[Series] = []
    for whose, scores in found.items():
        for name in dict.fromkeys(name for own in scores.values() for name in own):
            points = [(float(step), own[name]) for step, own in scores.items() if name in own]
            style = "blind" if whose else STYLES[len(series) % len(STYLES)]
            series.append(Series(label=whose + name.replace("_", " "), style=style, points=points, smooth=()))
    if series:
        chart = share_chart(series, (0, steps), label="held-out scores over steps")
        keys = legend([(one.style, one.label) for one in series])
        note = "Of some held-out questions, by another process; the results above are of all of them."
        yield figure("Held-out scores (%)", tag("div", chart, class_="scroll"), keys, note=note)


def _steps(stage: Stage | None) -> list[dict[str, Any]]:
    return read_lines(stage.folder / FILE) if stage else []


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
