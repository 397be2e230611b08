"""A run of toy stages in a process of its own, for tests that kill the runner.

    python -m tests.support.dag.runner <store> <session folder>

It prints `started <job id>`, `finished <stage>` and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipelines.dag.attempts.kinds import FailureKind
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.progress import Progress
from pipelines.dag.records import Records
from pipelines.dag.run import Runner
from pipelines.recipe.where import RayCluster
from pipelines.storage.uri import Folder

RAY = {"address": "local", "num_cpus": 4, "object_store_mb": 128}
STAGES = "tests.support.dag.stages"


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self, echo: bool = False) -> None:
        self.lines: list[str] = []
        self.errors: list[Exception] = []
        self.waits: list[tuple[FailureKind, float]] = []
        self._echo = echo

    def _note(self, line: str) -> None:
        self.lines.append(line)
        if self._echo:
            print(line, flush=True)

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        self._note(f"{'attached' if attached else 'started'} {job_id}")

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        self._note(f"progress {stage.name} {progress.done:g}/{progress.total:g} {progress.message}")

    def printed(self, stage: PlannedStage, line: str) -> None:
        self._note(f"printed {stage.name} {line}")

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        self._note(f"{'cached' if cached else 'finished'} {stage.name}")

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        self.waits.append((kind, wait_s))
        self._note(f"retrying {stage.name}: {reason}")

    def failed(self, stage: PlannedStage, error: Exception) -> None:
        self.errors.append(error)
        self._note(f"failed {stage.name}")


def remote(address: str) -> dict[str, Any]:
    """The recipe's ``where.ray`` of a cluster that is not ours; its jobs use what is installed there."""
    return RayCluster(address=address, code="installed").model_dump(mode="json")


def toy(name: str, function: str, inputs: dict[str, str] | None = None, **what: Any) -> StageSpec:
    """A toy stage; its kind is the function's name."""
    return StageSpec(
        name=name, kind=function, settings=what, function=f"{STAGES}:{function}", inputs=inputs or {}
    )


def gated(store: Path) -> list[StageSpec]:
    """A stage that waits for the file ``gate`` in the store, and one that follows it."""
    where = {"gate": str(store / "gate")}
    spec = StageSpec(
        name="slow", kind="wait_for_gate", settings={}, placement=where, function=f"{STAGES}:wait_for_gate"
    )
    return [spec, toy("after", "count_inputs", {"slow": "slow"})]


def make_runner(
    stages: list[StageSpec], store: Folder, session: Path, notes: Notes, **options: Any
) -> Runner:
    """A runner over toy stages on the local head of ``session``."""
    versions = {stage.kind: "1" for stage in stages}
    return Runner(
        plan(stages, store, versions), Records(store), Cluster(RAY, session, store), notes, **options
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    make_runner(gated(folder), folder, Path(sys.argv[2]), Notes(echo=True)).run()
