"""The report stage: the run's artifacts in, one HTML file out."""

from __future__ import annotations

import os
from typing import Any

from pipelines.dag.context import StageContext
from pipelines.report.page import render
from pipelines.report.sections.run_artifacts import gather

FILE = "report.html"


def run_stage(context: StageContext) -> dict[str, Any]:
    """Write ``report.html``. Inputs: any artifacts of a run, role = stage name; what is absent is said to be.

    Returns:
        ``{"path": …}``, where to open it.
    """
    context.progress(0, 1, "drawing the report")
    page = render(gather(context))
    partial = context.local_output / f"{FILE}.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, context.local_output / FILE)
    context.progress(1, 1, "report drawn")
    path = str(context.local_output / FILE)
    return {"headline": path, "path": path, "bytes": len(page.encode())}
