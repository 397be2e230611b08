"""Formats that several commands share: JSON, a summary in one line, a path as short as it can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from casa_core.printable import is_unicode, printable

SHOWN = 4
"""Numbers of a summary that its line shows."""


def print_json(value: Any) -> None:
    """Print one indented JSON document."""
    print(_as_json(value, indent=2), flush=True)


def print_json_line(value: Any) -> None:
    """Print one JSON object on one line: an event of a stream that scripts read line by line."""
    print(_as_json(value), flush=True)


def _as_json(value: Any, indent: int | None = None) -> str:
    """Characters that the output has not are escaped: nothing of the content is lost."""
    escaped = not is_unicode(sys.stdout)
    return printable(json.dumps(value, indent=indent, ensure_ascii=escaped, default=str))


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
