"""Section on reproducing the run: settings, seed, packages, machine."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipelines.html.layout import fold, section, table
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run


def provenance(run: Run) -> Html:
    """Settings of every stage, packages and machine, folded."""
    if not run.stages:
        return section("How it was made", "There is no artifact.")
    seeds = {stage.settings["seed"] for stage in run.stages.values() if "seed" in stage.settings}
    seed = f"The seed was {', '.join(map(str, sorted(seeds)))}. " if seeds else ""
    lead = f"{seed}Each stage's settings, as the recipe gave them; equal settings give equal fingerprints."
    settings = [
        fold(name, tag("pre", json.dumps(stage.settings, indent=2, ensure_ascii=False)))
        for name, stage in run.stages.items()
    ]
    return section("How it was made", lead, *settings, *_environment(run))


def _environment(run: Run) -> list[Html]:
    """Packages and machine of training, or of the first stage where nothing was trained."""
    stage = run.get("train") or next(iter(run.stages.values()))
    packages = stage.provenance.get("packages", {})
    folds = []
    if isinstance(packages, Mapping) and packages:
        rows = [[name, version] for name, version in sorted(packages.items())]
        folds.append(fold(f"Packages ({stage.name})", table(["package", "version"], rows)))
    scalars = {k: v for k, v in stage.provenance.items() if isinstance(v, str | int | float)}
    if scalars:
        folds.append(
            fold(f"Machine and times ({stage.name})", table(["", ""], [[k, v] for k, v in scalars.items()]))
        )
    return folds
