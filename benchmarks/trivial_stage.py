"""A stage that does next to nothing, in a module that imports as little: its job's time is the engine's."""

from __future__ import annotations

from typing import Any

from pipelines.dag.context import StageContext


def trivial(context: StageContext) -> dict[str, Any]:
    """Write one small file."""
    (context.output / "number.txt").write_text(str(context.settings["number"]))
    return {}
