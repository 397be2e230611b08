"""What a store keeps about its jobs, beside the artifacts: readable after Ray, or the machine, is gone.

<store>/jobs/<job id>.json           what the job was asked to do
<store>/jobs/<job id>.log            what it printed; on S3 in parts (:mod:`pipelines.storage.growing`)
<store>/jobs/<job id>.outcome.json   how it ended; absent if its node was lost
<store>/session/run.json             the stages of the latest run
<store>/session/last_stop            changes with every `casa stop`
<store>/locks/                       held while a stage is being started, and while one writes

The local Ray head's own files lie in :func:`pipelines.storage.host.session_folder`, on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.dag.artifact import provenance
from pipelines.dag.attempts.kinds import FailureKind
from pipelines.dag.plan import PlannedStage
from pipelines.storage.atomic import write_whole
from pipelines.storage.errors import explained
from pipelines.storage.host import session_folder
from pipelines.storage.json_files import read_json
from pipelines.storage.lock import locked
from pipelines.storage.uri import Folder

UNFINISHED_S = 600.0
"""Age from which a record that was begun and not finished counts as a killed writer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a stage's job is asked to do; everything it needs is in the store.

    Attributes:
        job_id: ``<stage>-<fingerprint12>-a<attempt>``.
        stage, kind, function, fingerprint, code_version, state: As in the plan.
        settings: Hashed. ``location``: further ones that are not hashed. ``placement``: on what it runs.
        inputs: Role → folder of the input artifact: a path, or an ``s3://`` URI.
        output: Folder to fill, likewise.
        store: The store's folder, likewise.
        timeout_s: Seconds after which it is ended; ``None``: never.
    """

    job_id: str
    stage: str
    kind: str
    function: str
    fingerprint: str
    code_version: str
    state: bool
    settings: dict[str, Any]
    location: dict[str, str]
    placement: dict[str, Any]
    inputs: dict[str, str]
    output: str
    store: str
    timeout_s: float | None = None

    @classmethod
    def of(cls, stage: PlannedStage, store: Folder, attempt: int) -> JobSpec:
        """The job for one attempt at a stage."""
        return cls(
            job_id=f"{stage.job_prefix}{attempt}",
            stage=stage.name,
            kind=stage.spec.kind,
            function=stage.spec.function,
            fingerprint=stage.fingerprint,
            code_version=stage.code_version,
            state=stage.spec.state,
            settings=stage.spec.settings,
            location=stage.spec.location,
            placement=stage.spec.placement,
            inputs={role: str(folder) for role, folder in stage.inputs.items()},
            output=str(stage.folder),
            store=str(store),
            timeout_s=stage.timeout_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended, as it recorded itself.

    Attributes:
        ok: Whether the artifact was committed.
        what, why, remedy: The error's texts; empty without one.
        kind: What kind of failure it was, which decides whether another attempt follows.
        explained: Whether the error explains itself, so that the log adds nothing.
    """

    ok: bool
    what: str = ""
    why: str = ""
    remedy: str = ""
    kind: FailureKind = "error"
    explained: bool = False


def _remove_unfinished(folder: Path) -> None:
    """Remove unfinished records; a young one may be being written, by this run or another, on a machine whose
    clock is another: the folder's own clock gives their ages."""
    unfinished = list(folder.glob(".*.*.*"))
    if not unfinished:
        return
    with explained(str(folder)), tempfile.NamedTemporaryFile(dir=folder, prefix=".now") as file:
        now = os.fstat(file.fileno()).st_mtime
    for path in unfinished:
        with contextlib.suppress(FileNotFoundError):  # renamed, or another run removes it too
            if path.is_file() and now - path.stat().st_mtime > UNFINISHED_S:
                path.unlink()


class Records:
    """The job records of a store, local or on S3."""

    def __init__(self, store: Folder) -> None:
        self.store = store
        self.jobs = store / "jobs"
        self.locks = store / "locks"
        self.session = session_folder(store)
        self._latest_run = store / "session" / "run.json"
        self._last_stop = store / "session" / "last_stop"

    def prepare(self) -> None:
        """Make the folders, before anything is written, and remove what killed writers left in them."""
        for folder in (self.jobs, self._latest_run.parent, self.locks, self.session):
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(folder, Path):
                _remove_unfinished(folder)

    def spec_path(self, job_id: str) -> Folder:
        return self.jobs / f"{job_id}.json"

    def log_path(self, job_id: str) -> Folder:
        return self.jobs / f"{job_id}.log"

    def outcome_path(self, job_id: str) -> Folder:
        return self.jobs / f"{job_id}.outcome.json"

    def write_spec(self, spec: JobSpec) -> Folder:
        """Record a job before it is submitted."""
        path = self.spec_path(spec.job_id)
        write_whole(path, json.dumps(asdict(spec), indent=2, ensure_ascii=False))
        return path

    def write_outcome(self, job_id: str, outcome: Outcome) -> None:
        """Record how a job ended."""
        write_whole(self.outcome_path(job_id), json.dumps(asdict(outcome), indent=2, ensure_ascii=False))

    def outcome(self, job_id: str) -> Outcome | None:
        """How a job ended; ``None`` if it was lost with its node, or still runs."""
        found = read_json(self.outcome_path(job_id), dict)
        known = {field.name for field in fields(Outcome)}  # another version's records may hold more
        return None if found is None else Outcome(**{k: v for k, v in found.items() if k in known})

    def latest_attempt(self, job_prefix: str) -> int:
        """Number of the latest attempt at a stage; 0 if there was none."""
        pattern = re.compile(re.escape(job_prefix) + r"(\d+)\.json")
        names = [path.name for path in self.jobs.iterdir()] if self.jobs.is_dir() else []
        matches = (pattern.fullmatch(name) for name in names)
        return max((int(match[1]) for match in matches if match), default=0)

    def write_run(
        self, recipe: str, ray: dict[str, Any], endpoint: str, stages: list[PlannedStage], job: str = ""
    ) -> None:
        """Record the latest run, and where it was started; ``job`` is that of its runner, if any."""
        listed = [
            {"name": s.name, "kind": s.spec.kind, "fingerprint": s.fingerprint, "folder": str(s.folder)}
            for s in stages
        ]
        run = {
            "recipe": recipe,
            "ray": ray,
            "endpoint": endpoint,
            "stages": listed,
            "job": job,
            "environment": provenance(),
        }
        write_whole(self._latest_run, json.dumps(run, indent=2))

    def read_run(self) -> dict[str, Any] | None:
        """The latest run, as :meth:`write_run` wrote it; ``None`` before the first."""
        return read_json(self._latest_run, dict)

    def last_stop(self) -> str:
        """Identifies the latest stop; empty before the first."""
        try:
            return self._last_stop.read_text()
        except FileNotFoundError:
            return ""

    def record_stop(self) -> None:
        """Let runs that are being watched, on whatever machine, start nothing more."""
        write_whole(self._last_stop, uuid.uuid4().hex)

    def starting(self, stage: PlannedStage) -> contextlib.AbstractContextManager[None]:
        """Held while looking for a stage's running job and, if there is none, submitting one."""
        return locked(self.locks / f"{stage.spec.kind}-{stage.fingerprint}.start", wait_s=60.0)

    def writing(
        self, kind: str, fingerprint: str, lost: Callable[[], None], wait_s: float = 30.0
    ) -> contextlib.AbstractContextManager[None]:
        """Held by the job that fills an artifact's folder: never two at once.

        Args:
            lost: Called where another job has taken its place: this one must end at once.
            wait_s: Seconds to wait for another one.
        """
        return locked(self.locks / f"{kind}-{fingerprint}.write", wait_s=wait_s, lost=lost)
