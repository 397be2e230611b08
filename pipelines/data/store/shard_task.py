"""Resumable shard tasks: each writes a shard and, last, a report, and is skipped where that exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.data.store.shard_writing import write_json
from pipelines.storage.uri import Folder

REPORTS = ".reports"
"""Folder of the reports in an unfinished artifact; removed when the artifact is whole."""


def write_once(report: Folder, write: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Runs a shard task unless an earlier attempt finished it.

    Args:
        report: The task's report file. Where it exists, the task's files are whole.
        write: Writes the task's files, each atomically, and returns the report: JSON values.

    Returns:
        The report as the file holds it, so that a resumed run sees what the first one saw.
    """
    if not report.is_file():
        write_json(report, write())
    return json.loads(report.read_text(encoding="utf-8"))
