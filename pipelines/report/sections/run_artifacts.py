"""The run's artifacts and their manifests, as the report's sections read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.storage.uri import Folder


@stage_settings
class Sizes:
    """The recipe's ``report`` section: numbers of examples, see `Run`."""

    gallery: int
    timelines: int


@stage_settings
class ReportSettings:
    """Settings of the report stage: the recipe's section, and the name under which the model is served."""

    report: Sizes
    model_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One finished stage: its artifact folder, and the content of its manifest.

    Attributes:
        name: Unique in the run, such as ``clean-vqa``.
        kind: Such as ``clean``.
        fingerprint: Identity of the artifact.
        folder: Where its files lie.
        settings: The part of the recipe that decided it.
        inputs: Role → fingerprint of the artifact it was made from.
        summary: The numbers the stage reported.
        code_version: Version of the stage's code.
        started: When the attempt that finished began; ``None`` if unknown.
        seconds: How long it took; ``None`` if unknown.
        size: Bytes of all its files.
        provenance: Host, packages, times: what differs between runs with equal results.
    """

    name: str
    kind: str
    fingerprint: str
    folder: Folder
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    summary: Mapping[str, Any]
    code_version: str
    started: datetime | None
    seconds: float | None
    size: int
    provenance: Mapping[str, Any]

    @property
    def card(self) -> str | None:
        """Address of the artifact's data card, relative to the report; ``None`` for a stage without one."""
        return f"cards/{self.name}.html" if self.kind in ("clean", "pack") else None

    def json(self, name: str) -> Any:
        """The content of a JSON file of the artifact, or ``None`` where there is no such file."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The stages of the run that the report is about.

    Attributes:
        stages: By name, in the order the stages depend on one another.
        model_name: Name under which the endpoint serves the model.
        gallery: Number of example answers to show.
        timelines: Number of live clips to show per source.
    """

    stages: Mapping[str, Stage]
    model_name: str
    gallery: int
    timelines: int

    def get(self, name: str) -> Stage | None:
        """The stage of that name, if the run has it."""
        return self.stages.get(name)

    def inputs_of(self, stage: Stage) -> dict[str, Folder]:
        """Role → artifact folder of the stage's inputs, those that are among the run's artifacts."""
        folders = {own.fingerprint: own.folder for own in self.stages.values()}
        return {role: folders[found] for role, found in stage.inputs.items() if found in folders}

    def of_kind(self, kind: str) -> list[Stage]:
        """Every stage of a kind."""
        return [stage for stage in self.stages.values() if stage.kind == kind]


def gather(context: StageContext) -> Run:
    """The run behind a report stage's inputs (role = stage name)."""
    stages = {name: _stage(name, folder, context.manifests[name]) for name, folder in context.inputs.items()}
    settings = read_settings(ReportSettings, context.settings)
    return Run(stages=_in_order(stages), model_name=settings.model_name, **asdict(settings.report))


def _stage(name: str, folder: Folder, manifest: Mapping[str, Any]) -> Stage:
    provenance = manifest.get("provenance", {})
    started = provenance.get("started")
    return Stage(
        name=name,
        kind=str(manifest["kind"]),
        fingerprint=str(manifest["fingerprint"]),
        folder=folder,
        settings=manifest.get("what", {}),
        inputs=manifest.get("inputs", {}),
        summary=manifest.get("summary", {}),
        code_version=str(manifest.get("code_version", "")),
        started=datetime.fromisoformat(started) if started else None,
        seconds=provenance.get("seconds"),
        size=sum(entry["bytes"] for entry in manifest.get("files", {}).values()),
        provenance=provenance,
    )


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Inputs before what is made from them; otherwise as given."""
    names = {stage.fingerprint: name for name, stage in stages.items()}
    ordered: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        for fingerprint in stages[name].inputs.values():
            if fingerprint in names:
                visit(names[fingerprint])
        ordered[name] = stages[name]

    for name in stages:
        visit(name)
    return ordered
