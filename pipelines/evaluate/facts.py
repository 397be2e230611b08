"""Everything that a score depends on, as names and values: listed on pages, held against another result's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.evaluate.results import BenchmarkResult

GROUPS = ("checkpoint", "data", "prompt", "decoding", "code")


def facts_of(result: BenchmarkResult) -> dict[str, str]:
    """Name → value: the metric, then ``GROUPS`` flattened, ``decoding sampling temperature`` for example."""
    found = {f"metric {name}": str(getattr(result.score, name)) for name in ("metric", "version", "rule")}
    found["metric name"] = found.pop("metric metric")
    for group in GROUPS:
        found |= dict(_flat(group, getattr(result, group)))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key.replace('_', ' ')}", inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
