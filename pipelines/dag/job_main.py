"""Entry point inside a stage's job: builds the context, calls the function, declares the artifact whole.

python -m pipelines.dag.job_main <store>/jobs/<job id>.json     a path, or an s3:// URI
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from casa_core.errors import CasaError, ClusterError, ConfigError, StoreError
from pipelines.dag import artifact
from pipelines.dag.code_version import load_function, read_versions
from pipelines.dag.context import StageContext
from pipelines.dag.jobs import missing_package
from pipelines.dag.progress import INTERVAL_S, ProgressPrinter
from pipelines.dag.records import JobSpec, Outcome, Records
from pipelines.storage import growing
from pipelines.storage.errors import disk_error
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder, open_folder

LOG_S = 10.0
"""Seconds that an ended job waits for its log to be whole."""


def run_job(spec: JobSpec) -> Outcome:
    """Run a stage and record how it ended. Every error is recorded; only a kill leaves no outcome."""
    records = Records(open_folder(spec.store))
    try:
        with records.writing(spec.kind, spec.fingerprint, _give_way):
            _make(spec)
        outcome = Outcome(ok=True)
    except Exception as error:
        outcome = _failure(error)
    try:
        records.write_outcome(spec.job_id, outcome)
    except StoreError as error:  # as on a full disk: the job's log, which Ray keeps too, has the reason
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return outcome


def _failure(error: Exception) -> Outcome:
    """How an error is recorded, and printed: this project's and a disk's as sentences, others as they are."""
    said = error if isinstance(error, CasaError) else disk_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        said = missing_package(error.name)
    if said is None:
        traceback.print_exc()
        what = "".join(traceback.format_exception_only(error)).strip()
        return Outcome(ok=False, what=what, why=_place(error), retry=_was_lost(error))
    print(f"{type(said).__name__}: {said}", file=sys.stderr, flush=True)
    retry = isinstance(said, ClusterError) and not isinstance(error, ModuleNotFoundError)
    return Outcome(ok=False, what=said.what, why=said.why, remedy=said.remedy, retry=retry, explained=True)


def _make(spec: JobSpec) -> None:
    """Fill the output folder and commit it, unless another attempt has done so meanwhile."""
    output = open_folder(spec.output)
    if not spec.state and artifact.read_manifest(output) is not None:
        print(f"{output} is whole already", flush=True)
        return
    _require_same_code(spec)
    inputs = {role: open_folder(folder) for role, folder in spec.inputs.items()}
    manifests = {role: _input_manifest(role, folder) for role, folder in inputs.items()}
    function = load_function(spec.function)
    artifact.begin(output)
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    context = StageContext(
        name=spec.stage,
        settings={**spec.settings, **spec.location},
        placement=spec.placement,
        inputs=inputs,
        output=output,
        manifests=manifests,
        fingerprint=spec.fingerprint,
        progress=ProgressPrinter(_log_interval(open_folder(spec.store))),
    )
    try:
        summary = _as_json(function(context), spec.function)
    except StoreError:
        if not _made_by_another_run(output):
            raise
        print(f"{output} was made whole by another run meanwhile", flush=True)
        return
    identity = {
        "fingerprint": spec.fingerprint,
        "kind": spec.kind,
        "what": {**spec.settings, **spec.location},
        "location": spec.location,
        "inputs": {role: manifest["fingerprint"] for role, manifest in manifests.items()},
        "code_version": spec.code_version,
    }
    made = {
        "stage": spec.stage,
        "job_id": spec.job_id,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "where": spec.placement,
        **artifact.provenance(),
    }
    artifact.commit(output, identity, summary, made)


def _require_same_code(spec: JobSpec) -> None:
    """Refuse to make an artifact with other code than it is named after, as nodes may have installed."""
    here = read_versions().get(spec.kind)
    planned = spec.code_version.partition("+")[0]
    if here is not None and str(here) != planned:
        raise ConfigError(
            f"The cluster's casa is another version: its stage {spec.kind} is {here}, not {planned}.",
            "The run was planned with the code that its fingerprints name.",
            "Leave `where.ray.code` at `sent`, or install the same version on all nodes.",
        )


def _made_by_another_run(output: Folder) -> bool:
    """Whether a run with another store has committed the artifact, and so has ended our uploads to it."""
    return isinstance(output, RemotePath) and artifact.read_manifest(output) is not None


def _input_manifest(role: str, folder: Folder) -> dict[str, Any]:
    manifest = artifact.read_manifest(folder)
    if manifest is None:
        raise StoreError(
            f"Input {role} is not there: {folder}.", "It was removed since the run was planned.", "Run again."
        )
    return manifest


def _as_json(summary: Any, function: str) -> Any:
    try:
        return json.loads(json.dumps(summary, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The summary that {function} returned is not JSON.",
            f"{str(error).capitalize()}.",
            "Return plain dicts, lists, texts and finite numbers (`.item()` for NumPy and torch scalars).",
        ) from None


def _was_lost(error: BaseException) -> bool:
    """Whether something outside the stage's code was lost: a worker, a node, a connection."""
    if isinstance(error, ConnectionError) or any(isinstance(error, lost) for lost in _lost_connections()):
        return True
    ray_exceptions = sys.modules.get("ray.exceptions")
    if ray_exceptions is None:
        return False
    own_fault = isinstance(error, ray_exceptions.RayTaskError)
    return isinstance(error, ray_exceptions.RayError) and not own_fault


def _lost_connections() -> list[type[BaseException]]:
    """What HTTP libraries raise for a lost connection, and none derives from `ConnectionError`; of those
    that this process has imported."""
    names = {
        "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
        "httpx": ("TransportError",),
        "urllib3.exceptions": ("TimeoutError", "ProtocolError", "NewConnectionError"),
    }
    imported = {sys.modules[module]: errors for module, errors in names.items() if module in sys.modules}
    return [getattr(module, name) for module, errors in imported.items() for name in errors]


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"raised at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _give_way() -> NoReturn:
    """End this process, which was suspended for so long that another attempt has taken its place."""
    print("Another attempt at this stage has begun: this one ends.", file=sys.stderr, flush=True)
    os._exit(1)


def _log_interval(store: Folder) -> float:
    """Seconds between two lines of progress: no more of them than readers see."""
    return INTERVAL_S if isinstance(store, Path) else growing.INTERVAL_S


@contextlib.contextmanager
def copied_to(log: Folder) -> Iterator[None]:
    """Sends everything this process and its children print to ``log`` too.

    The copier is a process of its own: what was printed reaches the log even if this one is killed.
    """
    uploader = [sys.executable, "-m", "pipelines.dag.log_upload", str(log)]
    command = ["tee", "-a", str(log)] if isinstance(log, Path) else uploader
    copier = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert copier.stdin is not None
    own = os.dup(sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(copier.stdin.fileno(), stream.fileno())
    copier.stdin.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        yield
    finally:
        sys.stdout.flush()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(own, stream.fileno())
        with contextlib.suppress(subprocess.TimeoutExpired):  # another process may still print
            copier.wait(LOG_S)


def main() -> int:
    """Run the job whose spec is named on the command line; 0 when its artifact is whole."""
    spec = JobSpec(**json.loads(open_folder(sys.argv[1]).read_text()))
    with copied_to(Records(open_folder(spec.store)).log_path(spec.job_id)):
        return 0 if run_job(spec).ok else 1


if __name__ == "__main__":
    sys.exit(main())
