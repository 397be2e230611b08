"""Formats that several commands share: JSON, a summary in one line, a path as short as it can be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from casa_core.printable import printable

SHOWN = 4
"""Numbers of a summary that its line shows."""


def print_json(value: Any) -> None:
    """Print one indented JSON document."""
    print(printable(json.dumps(value, indent=2, ensure_ascii=False, default=str)), flush=True)


def print_json_line(value: Any) -> None:
    """Print one JSON object on one line: an event of a stream that scripts read line by line."""
    print(printable(json.dumps(value, ensure_ascii=False, default=str)), flush=True)


def headline(summary: Mapping[str, Any], shown: int = SHOWN) -> str:
    """A stage's summary in one line: its own ``headline`` where it has one, otherwise its first numbers."""
    if isinstance(own := summary.get("headline"), str):
        return own
    values = [f"{name.replace('_', ' ')} {value}" for name, value in _numbers(summary, "")]
    return " · ".join(values[:shown])


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", f"{value:,}"


def nearby(path: str | Path) -> str:
    """A path relative to the working folder where it is below it; anything else, such as a URI, unchanged."""
    local = Path(path)
    return str(local.relative_to(Path.cwd())) if local.is_relative_to(Path.cwd()) else str(path)
