"""The report stage: ``report.html`` about the run's artifacts, and beside it the data cards it links to."""

from __future__ import annotations

from typing import Any

from pipelines.cards.data import card_page
from pipelines.dag.context import StageContext
from pipelines.report.page import render
from pipelines.report.sections.run_artifacts import gather
from pipelines.storage.atomic import write_whole

FILE = "report.html"


def run_stage(context: StageContext) -> dict[str, Any]:
    """Write the report and the data cards.

    Inputs: any artifacts of a run, role = stage name. Where one is absent, its section states that.

    Returns:
        ``path`` of ``report.html`` and its ``bytes``.

    Raises:
        StoreError: If an artifact's card cannot be drawn.
    """
    run = gather(context)
    described = {stage.card: stage for stage in run.stages.values() if stage.card}
    steps = len(described) + 1
    for done, (address, stage) in enumerate(described.items()):
        context.progress(done, steps, f"drawing the data card of {stage.name}")
        (context.output / address).parent.mkdir(exist_ok=True)
        write_whole(context.output / address, card_page(stage.folder, run.inputs_of(stage)))
    context.progress(steps - 1, steps, "drawing the report")
    page = render(run)
    write_whole(context.output / FILE, page)
    context.progress(steps, steps, "report drawn")
    path = str(context.output / FILE)
    return {"headline": path, "path": path, "bytes": len(page.encode())}
