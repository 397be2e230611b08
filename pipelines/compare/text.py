"""Texts of a comparison: table cells, explanation, conclusion, and all as Markdown."""

from __future__ import annotations

import math

from pipelines.compare.comparison import Comparison, Row
from pipelines.compare.statistics import Interval
from pipelines.text_format import duration, number


def heading(found: Comparison) -> list[str]:
    """Names of the table's columns."""
    first = found.rows[0].variant
    return [
        "variant",
        *found.columns,
        f"{found.columns[0]}, beside {first}",
        "loss",
        "parameters",
        "operations a text token",
        "training",
    ]


def cells(row: Row, found: Comparison) -> list[str]:
    """Cells of a variant's row, in the order of `heading`."""
    difference = row.differences.get(found.columns[0])
    return [
        row.variant,
        *(share(row.scores[column]) for column in found.columns),
        "" if difference is None else points(difference),
        f"{row.loss.mean:.3f}",
        number(row.parameters),
        number(row.operations_per_token),
        duration(row.seconds.mean),
    ]


def share(interval: Interval) -> str:
    """A share in percent with its interval, such as ``93.1 % [90.0 to 96.2]``."""
    mean = f"{100 * interval.mean:.1f} %"
    if math.isinf(interval.high):
        return mean
    low, high = (100 * min(max(end, 0.0), 1.0) for end in (interval.low, interval.high))
    return f"{mean} [{low:.1f} to {high:.1f}]"


def points(interval: Interval) -> str:
    """A difference in percentage points, in bold where its interval leaves out 0."""
    mean = f"{100 * interval.mean:+.1f}"
    if math.isinf(interval.high):
        return mean
    text = f"{mean} [{100 * interval.low:+.1f} to {100 * interval.high:+.1f}]"
    return f"**{text}**" if interval.excludes_zero else text


def explanation(found: Comparison) -> str:
    """What the numbers are and where they do not apply, in a paragraph."""
    seeds, first = found.seeds, found.rows[0].variant
    chance = ", ".join(f"{column} {100 * value:.1f} %" for column, value in found.chance.items())
    spread = (
        "Brackets are 95 % intervals of the mean over seeds (Student's t). Differences are taken seed by "
        "seed, and are bold where their interval leaves out 0; one in twenty does so by chance."
        if len(seeds) > 1
        else "One seed has no spread, so there are no intervals."
    )
    trained = f"{len(found.rows)} variants, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} each"
    return (
        f"{trained} ({', '.join(map(str, seeds))}), {found.questions} held-out questions. "
        f"Guessing gives {chance}. {spread} "
        f"All differ from `{first}` in their own settings alone: data, order, steps, batch, budgets and "
        "learning rates are the same, and none was tuned. The order of small models trained from scratch "
        "need not be that of large pretrained ones."
    )


def conclusion(found: Comparison) -> str:
    """Which variants differ from the first by more than their seeds do, in a sentence or two."""
    column, first = found.columns[0], found.rows[0].variant
    sure = [row for row in found.rows[1:] if row.differences[column].excludes_zero]
    if not sure:
        return f"By {column}, no variant differs from {first} by more than seeds do."
    differences = ", ".join(f"{row.variant} {100 * row.differences[column].mean:+.1f}" for row in sure)
    lead = f"By {column}, beside {first}, in percentage points"
    return f"{lead}: {differences}. The others are within what seeds do."


def markdown(found: Comparison) -> str:
    """The comparison as a Markdown document."""
    head = heading(found)
    lines = [
        f"# {found.name}",
        "",
        explanation(found),
        "",
        conclusion(found),
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cells(row, found))} |" for row in found.rows),
    ]
    return "\n".join(lines) + "\n"
