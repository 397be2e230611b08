"""A stage's summary in one line, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.dag.plan import PlannedStage

SHOWN = 4


def headline(summary: Mapping[str, Any], shown: int = SHOWN) -> str:
    """The summary's own ``headline`` where it has one, otherwise its first few numbers."""
    if isinstance(own := summary.get("headline"), str):
        return own
    values = [f"{name.replace('_', ' ')} {value}" for name, value in _scalars(summary, "")]
    return " · ".join(values[:shown])


def _scalars(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", f"{value:,}"


def name_width(stages: list[PlannedStage]) -> int:
    """Columns that the longest stage name takes."""
    return max(len(stage.name) for stage in stages)
