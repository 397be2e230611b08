"""The plan of a run: stages in order, each with its fingerprint and whether it would run, and why."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from casa_core.errors import ConfigError
from pipelines.dag.artifact import read_manifest
from pipelines.dag.changes import INPUTS, Change, nearest
from pipelines.dag.fingerprint import stage_fingerprint
from pipelines.storage.uri import Folder, data_store
from pipelines.text_format import parse_duration

Status = Literal["done", "run", "check"]
DATA_KINDS = frozenset({"corpus", "clean", "pack"})
"""Kinds of stages whose artifacts live in ``where.data_store``, where the recipe names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One stage of a run.

    Attributes:
        name: Unique in the run, for example ``clean-vqa``.
        kind: Kind of stage, for example ``clean``; names its folder in the store.
        settings: JSON settings that decide the output: hashed.
        function: ``package.module:function``, imported inside the stage's job only.
        inputs: Role → name of the stage whose artifact plays it.
        placement: JSON settings that decide only where and on what it runs: not hashed.
        location: Further entries of the context's settings, which only give the location of raw input: not
            hashed, because the input's content is.
        state: The stage brings about a state (a running endpoint) rather than files: checked on every run.
        check: For a state: ``package.module:function`` that checks whether it holds, without Ray:
            ``check(placement, settings, fingerprint) -> summary | None``.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    function: str
    inputs: dict[str, str] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)
    location: dict[str, str] = field(default_factory=dict)
    state: bool = False
    check: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage with its place in the store.

    Attributes:
        folder: Its artifact: ``<store>/<kind>/<fingerprint>``, of data in the data store.
        inputs: Role → folder of the input artifact.
        code_version: Code version of its kind, part of the fingerprint.
        status: ``done``: a whole artifact is there; ``run``: it would run; ``check``: a state to look at.
        reason: Why, for people.
        changes: What sets it apart from the most similar artifact of its stage, where it would run.
    """

    spec: StageSpec
    fingerprint: str
    folder: Folder
    inputs: dict[str, Folder]
    code_version: str
    status: Status
    reason: str
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def job_prefix(self) -> str:
        """Start of the ids of this stage's jobs; the number of the attempt follows."""
        return f"{self.spec.name}-{self.fingerprint[:12]}-a"

    @property
    def timeout_s(self) -> float | None:
        """Seconds that an attempt may take, by ``where.timeouts`` of its name, else its kind."""
        timeouts = self.spec.placement.get("timeouts", {})
        text = timeouts.get(self.name, timeouts.get(self.spec.kind))
        return None if text is None else parse_duration(text)


def plan(stages: Sequence[StageSpec], store: Folder, versions: Mapping[str, str]) -> list[PlannedStage]:
    """Order stages, compute their fingerprints and look up which are done in a store.

    Raises:
        ConfigError: For a duplicate name, an unknown input, a cycle, a kind without a version or a setting
            that cannot be part of a fingerprint.
    """
    planned: dict[str, PlannedStage] = {}
    for spec in _ordered(stages):
        if spec.kind not in versions:
            raise ConfigError(
                f"Stage kind {spec.kind} has no code version.",
                f"Kinds with one: {', '.join(sorted(versions))}.",
                "Run `python -m pipelines.dag.code_version --update` and commit stage_versions.json.",
            )
        inputs = {role: planned[name] for role, name in sorted(spec.inputs.items())}
        version = versions[spec.kind]
        fingerprints = {role: stage.fingerprint for role, stage in inputs.items()}
        fingerprint = stage_fingerprint(spec.kind, spec.settings, fingerprints, version)
        folder = (_data_store(spec) or store) / spec.kind / fingerprint
        wanted = {"stage": spec.name, "what": spec.settings, "inputs": fingerprints, "code_version": version}
        status, reason, found = _status(spec, folder, list(inputs.values()), wanted)
        planned[spec.name] = PlannedStage(
            spec=spec,
            fingerprint=fingerprint,
            folder=folder,
            inputs={role: stage.folder for role, stage in inputs.items()},
            code_version=version,
            status=status,
            reason=reason,
            changes=tuple(found),
        )
    return list(planned.values())


def _data_store(spec: StageSpec) -> Folder | None:
    return data_store(spec.placement) if spec.kind in DATA_KINDS else None


def _ordered(stages: Sequence[StageSpec]) -> list[StageSpec]:
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) != len(stages):
        names = [stage.name for stage in stages]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(
            f"Two stages are called {twice}.", "A stage's name is its identity in a run.", "Rename one."
        )
    for stage in stages:
        for role, name in stage.inputs.items():
            if name not in by_name:
                raise ConfigError(
                    f"Stage {stage.name} takes its {role} from {name}, which is not part of the run.",
                    f"Stages of the run: {', '.join(by_name)}.",
                    "Add that stage or change the input.",
                )
    try:
        order = graphlib.TopologicalSorter({s.name: set(s.inputs.values()) for s in stages}).static_order()
        rank = {name: index for index, name in enumerate(order)}
    except graphlib.CycleError as error:
        cycle = " → ".join(error.args[1])
        raise ConfigError(
            f"Stages wait for each other: {cycle}.", "", "Remove one of these inputs."
        ) from None
    return sorted(stages, key=lambda stage: rank[stage.name])


def _status(
    spec: StageSpec, folder: Folder, inputs: list[PlannedStage], wanted: Mapping[str, Any]
) -> tuple[Status, str, list[Change]]:
    """What becomes of a stage, why, and what sets it apart from the artifact most like it."""
    if spec.state:
        return "check", "a running state: its health is checked on every run", []
    if read_manifest(folder) is not None:
        return "done", "made by an earlier run", []
    others = folder.parent.iterdir() if folder.parent.is_dir() else ()
    found = nearest((own for other in others if (own := read_manifest(other)) is not None), wanted)
    if folder.exists():
        return "run", "an earlier attempt did not finish; it resumes or starts over", found
    waiting = [stage.name for stage in inputs if stage.status == "run"]
    own = [change for change in found if not (waiting and change.name.startswith(INPUTS))]
    reasons = [f"new input from {_few(waiting)}"] if waiting else []
    if own:
        reasons.append(f"changed: {_few([str(change) for change in own])}")
    return "run", "; ".join(reasons) or "never made in this store", found


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
