"""Everything that a score depends on, as names and values: listed on pages, held against another result's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pipelines.evaluate.results import BenchmarkResult


def facts_of(result: BenchmarkResult) -> dict[str, str]:
    """Name → value: the metric, then the result's groups, flattened: ``decoding sampling temperature``."""
    found = {f"metric {name}": str(getattr(result.score, name)) for name in ("metric", "version", "rule")}
    found["metric name"] = found.pop("metric metric")
    for group in fields(result):
        value = getattr(result, group.name)
        if isinstance(value, dict) and group.name != "failed":
            found |= dict(_flat(group.name, {key: of for key, of in value.items() if key != "counts"}))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key.replace('_', ' ')}", inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
