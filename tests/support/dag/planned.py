"""A stage as a run's plan has it, for what only shows or reads plans."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipelines.dag.plan import PlannedStage, StageSpec


def planned_stage(
    name: str, kind: str, folder: Path, *, fingerprint: str = "f" * 40, status: Literal["run", "done"] = "run"
) -> PlannedStage:
    """Without settings, inputs or a function that could run."""
    return PlannedStage(
        spec=StageSpec(name=name, kind=kind, settings={}, function=""),
        fingerprint=fingerprint,
        folder=folder,
        inputs={},
        code_version="1",
        status=status,
        reason="",
    )
