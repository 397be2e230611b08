"""Submitted runs: runs whose runner is a job of the cluster, so that the terminal may be closed.

<store>/submitted/<name>/recipe.yaml       the recipe, its base and overrides laid over each other
<store>/submitted/<name>/earlier.yaml      that of ``model.weights.recipe``, where this is a file
<store>/submitted/<name>/submission.json   the cluster, and what the run does

The runner's jobs are ``run-<name>-a<attempt>``, with the records of a stage's (:mod:`pipelines.dag.records`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from casa_core.errors import ConfigError
from pipelines.dag.jobs import Cluster, JobExists
from pipelines.dag.records import Records
from pipelines.storage.atomic import write_whole
from pipelines.storage.json_files import read_json
from pipelines.storage.lock import locked
from pipelines.storage.uri import Folder

RUNNER = "pipelines.runner_job"
"""Module of the runner's job."""
START_S = 60.0
"""Seconds to wait for another that submits the same run."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A submitted run, as the store keeps it.

    Attributes:
        name: How it is called, by people who come back to it.
        ray: ``where.ray`` of its recipe: how the cluster is reached from outside of it.
        command: The command whose work it does, ``run``, ``train`` or ``prepare``.
        recipes: Recipes by the names of their files.
    """

    name: str
    ray: dict[str, Any]
    command: str
    recipes: dict[str, str]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"A run cannot be called {self.name!r}.",
                "A name has up to 63 letters, digits, `_`, `-` and `.`, and begins with a letter or digit.",
                "Give another with --name.",
            )


def runner_prefix(name: str) -> str:
    """Start of the ids of a run's runner; the number of the attempt follows."""
    return f"run-{name}-a"


def submitted_name(job_id: str) -> str:
    """Name of the run that a runner's job belongs to."""
    return job_id.removeprefix("run-").rpartition("-a")[0]


def folder_of(store: Folder, name: str) -> Folder:
    """Where a submitted run is kept."""
    return store / "submitted" / name


def submitted_names(store: Folder) -> list[str]:
    """Names of the runs that were submitted to a store."""
    folder = store / "submitted"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def read_submission(store: Folder, name: str) -> Submission | None:
    """A submitted run; ``None`` if the store has none of this name."""
    found = read_json(folder_of(store, name) / "submission.json", dict)
    if found is None:
        return None
    folder = folder_of(store, name)
    recipes = {path.name: path.read_text() for path in folder.iterdir() if path.name.endswith(".yaml")}
    return Submission(**found, recipes=recipes)


def submit_runner(records: Records, cluster: Cluster, submission: Submission) -> tuple[str, bool]:
    """Have the run's runner working on the cluster: find it there, or start the next attempt.

    Returns:
        The id of its job, and whether it was working already.

    Raises:
        ConfigError: If a run of this name, and of another recipe, goes on.
        ClusterError: If the cluster refuses it.
        Unreachable: If the cluster does not answer.
    """
    records.prepare()
    prefix = runner_prefix(submission.name)
    with locked(records.locks / f"run-{submission.name}.start", wait_s=START_S):
        attempt = records.latest_attempt(prefix)
        if attempt and cluster.state(f"{prefix}{attempt}") == "active":
            _require_same(read_submission(records.store, submission.name), submission)
            return f"{prefix}{attempt}", True
        _write(records.store, submission)
        return _start(records, cluster, submission, attempt + 1), False


def _start(records: Records, cluster: Cluster, submission: Submission, attempt: int) -> str:
    while True:
        job_id = f"{runner_prefix(submission.name)}{attempt}"
        spec = {"job_id": job_id, "name": submission.name, "store": str(records.store)}
        path = records.spec_path(job_id)
        write_whole(path, json.dumps(spec, indent=2))
        try:
            cluster.start(job_id, [RUNNER, str(path)], {"run": submission.name})
        except JobExists:  # The store lost its records of it since: take the next one.
            path.unlink()
            attempt += 1
        else:
            return job_id


def _require_same(going_on: Submission | None, wanted: Submission) -> None:
    if going_on is None or _asked(going_on) == _asked(wanted):
        return
    raise ConfigError(
        f"A run called {wanted.name} goes on in this store, with other settings.",
        "Its runner works on the recipe that it was submitted with.",
        "End it with `casa stop`, or submit this one under another --name.",
    )


def _asked(submission: Submission) -> Mapping[str, Any]:
    """What a run does; not where its cluster answers, which depends on the asking machine."""
    return {"command": submission.command, "recipes": submission.recipes}


def _write(store: Folder, submission: Submission) -> None:
    folder = folder_of(store, submission.name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in submission.recipes.items():
        write_whole(folder / name, text)
    record = {key: value for key, value in asdict(submission).items() if key != "recipes"}
    write_whole(folder / "submission.json", json.dumps(record, indent=2))
