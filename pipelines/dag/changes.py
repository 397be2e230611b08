"""Which values differ between two pieces of work, from what to what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "absent"
INPUTS, CODE = "input", "code version"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs.

    Attributes:
        name: Where it stands, such as ``train.learning_rate``; an input is ``input pack``.
        before, after: As JSON; ``absent`` where there is none.
    """

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} → {self.after}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The values that differ between two manifests' settings, inputs and code versions.

    Args:
        before, after: What a manifest says was asked for: ``what``, ``inputs`` (role → fingerprint) and
            ``code_version``.
    """
    return [
        *_different(dict(_leaves(before["what"])), dict(_leaves(after["what"]))),
        *_different(_inputs(before), _inputs(after)),
        *_different({CODE: str(before["code_version"])}, {CODE: str(after["code_version"])}),
    ]


def nearest(manifests: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]) -> list[Change]:
    """The changes since the artifact of the same stage that is the most like a piece of work.

    Args:
        manifests: Those of artifacts of its kind.
        wanted: The work, as of :func:`changes`, and ``stage``, its name.

    Returns:
        Nothing where its stage has made none.
    """
    own = [one for one in manifests if one["provenance"].get("stage") == wanted["stage"]]
    compared = [(changes(one, wanted), one["provenance"].get("started", "")) for one in own]
    if not compared:
        return []
    latest_first = sorted(compared, key=lambda one: one[1], reverse=True)
    return min((one for one, _ in latest_first), key=len)


def numbers(summary: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """Dotted name → value of every number of a summary."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{above}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{above}{name}"] = value
    return found


def _inputs(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {f"{INPUTS} {role}": fingerprint[:12] for role, fingerprint in manifest["inputs"].items()}


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name → JSON of every value that is no mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(value, ensure_ascii=False)


def _different(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    found = [
        Change(name, before.get(name, ABSENT), after.get(name, ABSENT))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return sorted(found, key=lambda change: ABSENT in (change.before, change.after))  # new settings last
