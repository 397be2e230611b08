"""Readable names of artifacts, ``train@2026-11-30T14:05``: the stage that made one, and when it began (UTC).

They are computed from manifests, and kept nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from casa_core.errors import ConfigError
from pipelines.dag.history.lineage import whole_artifacts
from pipelines.storage.uri import Folder

LATEST = "latest"
MINUTES = len("2026-11-30T14:05")
_ALIAS = re.compile(r"(?P<stage>[\w.-]+)@(?P<when>latest|\d{4}-\d\d(?:-\d\d(?:[T ][\d:]{2,8})?)?)")
SHOWN = 5
"""Other aliases that an error names."""


def alias_of(manifest: Mapping[str, Any]) -> str:
    """An artifact's stage, and when it was begun, to the minute: as it stays when others are made."""
    provenance = manifest["provenance"]
    started = str(provenance.get("started", ""))[:MINUTES]
    return f"{provenance.get('stage', manifest['kind'])}@{started}" if started else ""


def is_alias(text: str) -> bool:
    """Whether a text has the form of an alias."""
    return _ALIAS.fullmatch(text) is not None


def find_by_alias(alias: str, store: Folder) -> Folder:
    """The artifact of a store that an alias names: ``STAGE@`` and ``latest``, a date, or a date and time.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    stage, _, when = alias.partition("@")
    when = when.replace(" ", "T")
    own = [
        (str(manifest["provenance"].get("started", "")), folder, alias_of(manifest))
        for folder, manifest in whole_artifacts(store)
        if manifest["provenance"].get("stage", manifest["kind"]) == stage
    ]
    own.sort(key=lambda one: one[0], reverse=True)
    found = own[:1] if when == LATEST else [one for one in own if one[0].startswith(when)]
    if len(found) == 1:
        return found[0][1]
    if found:
        raise ConfigError(
            f"The alias {alias} names {len(found)} artifacts in {store}.",
            f"They are {', '.join(f'{name} ({folder.name[:12]})' for _, folder, name in found[:SHOWN])}.",
            f"Give more of the time, or the fingerprint; `{stage}@{LATEST}` is the last of all.",
        )
    raise ConfigError(
        f"The alias {alias} names no artifact in {store}.",
        f"Of {stage} there are {', '.join(name for _, _, name in own[:SHOWN]) or 'none'}.",
        "`casa status` names those of the latest run; times are UTC.",
    )
