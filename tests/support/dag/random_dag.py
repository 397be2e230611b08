"""Random runs: stages whose content follows from their definition, which fail as they are told to.

    python -m tests.support.dag.random_dag <DAG as JSON> <socket of the job server, or session folder of Ray>

The exit code is 0 for a run that made everything, and 1 for one that ended with a stage's failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from casa_core.errors import TransferError
from pipelines.dag.context import StageContext
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import Records
from pipelines.dag.run import Runner, StageFailed
from pipelines.storage.uri import open_folder
from tests.support.dag.runner import RAY, Notes

RETRIES = 2


@dataclass(frozen=True)
class RandomDag:
    """A DAG of stages that are named by their numbers.

    Attributes:
        store: Folder or URI.
        diary: File outside of the store, to which each making of a stage adds a line.
        inputs: Of each stage, numbers of earlier ones.
        faults: Of each stage, how its first attempts end; later ones end well.
    """

    store: str
    diary: str
    inputs: list[list[int]]
    faults: list[list[str]]

    def planned(self) -> dict[int, PlannedStage]:
        """The plan, by number."""
        specs = [
            StageSpec(
                name=f"s{number}",
                kind="work",
                settings={"number": number},
                function="tests.support.dag.random_dag:work",
                inputs={f"from{each}": f"s{each}" for each in inputs},
                placement={"diary": self.diary, "faults": faults},
            )
            for number, (inputs, faults) in enumerate(zip(self.inputs, self.faults, strict=True))
        ]
        stages = plan(specs, open_folder(self.store), {"work": "1"})
        return {stage.spec.settings["number"]: stage for stage in stages}

    def save(self, path: Path) -> str:
        """Write it to a file; the file's name."""
        path.write_text(json.dumps(asdict(self)))
        return str(path)


def work(context: StageContext) -> dict[str, Any]:
    """Writes ``number(inputs' texts)`` in two files; fails in between, as its next fault says."""
    diary = Path(context.placement["diary"])
    with diary.open("a") as file:
        file.write(f"{context.name}\n")
    begun = diary.read_text().split().count(context.name)
    faults = context.placement["faults"]
    texts = [(context.inputs[role] / "text").read_text() for role in sorted(context.inputs)]
    text = f"{context.settings['number']}({','.join(texts)})"
    (context.output / "half").write_text(text[: len(text) // 2])
    if begun <= len(faults):
        fail(faults[begun - 1], context)
    (context.output / "text").write_text(text)
    print(f"made {context.name}")
    return {"length": len(text)}


def fail(fault: str, context: StageContext) -> None:
    """End as told: by an error of its own, of the store or of a connection, or killed at some instant."""
    if fault == "error":
        raise ValueError("a bug")
    if fault == "store":
        raise TransferError("The store cannot be used: its server does not answer.", "", "Run again.")
    if fault == "connection":
        raise ConnectionResetError("reset by peer")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "kill the job":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # its process has to end by itself
    if fault == "kill at the commit":
        assert isinstance(context.output, Path), "on a disk only"
        kill_at_the_commit(context.output)


def kill_at_the_commit(output: Path) -> None:
    """Have a process watch for the manifest, and kill this one then, whether or not its outcome is noted."""
    stage, deadline = os.getpid(), time.monotonic() + 10
    if os.fork():
        return
    with contextlib.suppress(ProcessLookupError):
        while not (output / "manifest.json").exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(stage, signal.SIGKILL)
    os._exit(0)


def main() -> int:
    """A run, from wherever the store is; what it observed is added to ``<DAG>.notes``."""
    file, head = sys.argv[1:]
    dag = RandomDag(**json.loads(Path(file).read_text()))
    store = open_folder(dag.store)
    if os.path.isdir(head):
        cluster = Cluster(RAY, Path(head), store)
    else:
        from tests.support.dag.job_server import StandIn

        cluster = StandIn(head, store)
    notes, code = Notes(), 0
    try:
        Runner(
            list(dag.planned().values()), Records(store), cluster, notes, parallel=2, retries=RETRIES
        ).run()
    except StageFailed as error:
        code = 1 if error.remedy else 2  # a failure says what to do
    with open(f"{file}.notes", "a") as out:
        out.write("".join(f"{line}\n" for line in notes.lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
