"""Entry point inside a stage's job: builds the context, calls the function, declares the artifact whole.

python -m pipelines.dag.job_main <store>/jobs/<job id>.json [<time-out, s>]     a path, or an s3:// URI

The job is two processes: the stage's, and the one above it, which records how it ended.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from casa_core.errors import CasaError, ClusterError, ConfigError, StoreError, TransferError
from infra.code_package import missing_package
from infra.environment import software, topology
from infra.quota import limit_threads
from pipelines.dag import artifact
from pipelines.dag.attempts.kinds import FailureKind
from pipelines.dag.attempts.supervisor import Ending, run_supervised
from pipelines.dag.code_version import load_function, read_versions
from pipelines.dag.context import StageContext
from pipelines.dag.progress import INTERVAL_S, ProgressPrinter
from pipelines.dag.records import JobSpec, Outcome, Records
from pipelines.storage import growing
from pipelines.storage.errors import disk_error
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder, open_folder
from pipelines.text_format import duration

T = TypeVar("T")
LOG_S = 10.0
"""Seconds that an ended job waits for its log to be whole."""


def run_job(spec: JobSpec) -> Outcome:
    """Run a stage; every error becomes an outcome."""
    records = Records(open_folder(spec.store))
    try:
        with records.writing(spec.kind, spec.fingerprint, _give_way):
            _make(spec)
    except Exception as error:
        return _failure(error)
    return Outcome(ok=True)


def _failure(error: Exception) -> Outcome:
    """How an error is recorded, and printed: this project's and a disk's as sentences, others as they are."""
    said = error if isinstance(error, CasaError) else disk_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        said = missing_package(error.name)
    if said is None:
        traceback.print_exc()
        what = "".join(traceback.format_exception_only(error)).strip()
        return Outcome(ok=False, what=what, why=_place(error), kind=_kind_of_foreign(error))
    print(f"{type(said).__name__}: {said}", file=sys.stderr, flush=True)
    passing = (
        "lost" if isinstance(said, ClusterError) and not isinstance(error, ModuleNotFoundError) else "error"
    )
    kind = "store" if isinstance(said, TransferError) else passing
    return Outcome(ok=False, what=said.what, why=said.why, remedy=said.remedy, kind=kind, explained=True)


def _make(spec: JobSpec) -> None:
    """Fill the output folder and commit it, unless another attempt has done so meanwhile."""
    output = open_folder(spec.output)
    if not spec.state and artifact.read_manifest(output) is not None:
        print(f"{output} is whole already", flush=True)
        return
    _require_same_code(spec)
    inputs = {role: open_folder(folder) for role, folder in spec.inputs.items()}
    manifests = {role: _input_manifest(role, folder) for role, folder in inputs.items()}
    made_with = _beside(lambda: software(artifact.ROOT))  # the source as it is now
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
        **made_with.result(),
        **topology(),  # of the cluster that the stage has joined
    }
    artifact.commit(output, identity, summary, made)


def _beside(find: Callable[[], T]) -> Future[T]:
    """What ``find`` finds while the stage begins its work."""
    with_stage = ThreadPoolExecutor(max_workers=1)
    try:
        return with_stage.submit(find)
    finally:
        with_stage.shutdown(wait=False)


def _require_same_code(spec: JobSpec) -> None:
    """Refuse to make an artifact with other code than it is named after, as nodes may have installed."""
    ray = spec.placement.get("ray", {})
    if ray.get("address", "local") == "local" or ray["code"] != "installed":
        return
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


def _kind_of_foreign(error: BaseException) -> FailureKind:
    """Kind of another library's error: whether a worker, a node or a connection outside the stage's code was
    lost, and where Ray ended a worker, whether that was for want of memory."""
    if isinstance(error, ConnectionError) or any(isinstance(error, lost) for lost in _lost_connections()):
        return "lost"
    ray_exceptions = sys.modules.get("ray.exceptions")
    if ray_exceptions is None or isinstance(error, ray_exceptions.RayTaskError):
        return "error"
    if isinstance(error, ray_exceptions.OutOfMemoryError):
        return "memory"
    return "lost" if isinstance(error, ray_exceptions.RayError) else "error"


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


def copy_output(log: Folder) -> tuple[subprocess.Popen[bytes], int]:
    """Send everything this process and its children print to ``log`` too.

    The copier is a process of its own: what was printed reaches the log even if this one is killed.

    Returns:
        The copier, and the output as it was.
    """
    uploader = [sys.executable, "-m", "pipelines.dag.attempts.log_upload", str(log)]
    command = ["tee", "-a", str(log)] if isinstance(log, Path) else uploader
    copier = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert copier.stdin is not None
    own = os.dup(sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(copier.stdin.fileno(), stream.fileno())
    copier.stdin.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return copier, own


def end_copying(copier: subprocess.Popen[bytes], own: int) -> None:
    """Put the output back to ``own``, and wait until the copy is whole."""
    sys.stdout.flush()
    for stream in (sys.stdout, sys.stderr):
        os.dup2(own, stream.fileno())
    with contextlib.suppress(subprocess.TimeoutExpired):  # another process may still print
        copier.wait(LOG_S)


def _run_stage(spec_path: Folder, note: IO[str]) -> int:
    """The stage's process: run the job, and leave its outcome in ``note``, on one line."""
    try:
        outcome = run_job(JobSpec(**json.loads(spec_path.read_text())))
    except CasaError as error:  # the store is out of reach
        outcome = _failure(error)
    note.write(json.dumps(asdict(outcome)) + "\n")
    note.flush()
    return 0 if outcome.ok else 1


def _outcome(note: IO[str], ending: Ending, timeout_s: float | None) -> Outcome | None:
    """How a stage's process ended: as it noted, else by what killed it. ``None`` where it was ended on
    request, or ended itself in the middle."""
    note.seek(0)
    if (text := note.read()).endswith("\n"):
        outcome = Outcome(**json.loads(text))
        # A worker that Ray lost on this machine, where the kernel has just killed a process.
        lost = outcome.kind == "lost" and not outcome.ok
        return replace(outcome, kind="memory") if lost and ending.out_of_memory else outcome
    if ending.code >= 0 or -ending.code == signal.SIGTERM:
        return None
    if ending.timed_out and timeout_s is not None:
        outcome = _timed_out(timeout_s)
    elif ending.out_of_memory and -ending.code == signal.SIGKILL:
        outcome = _out_of_memory()
    else:
        killer = f"signal {-ending.code} ({signal.Signals(-ending.code).name})"
        outcome = Outcome(ok=False, kind="lost", what=f"Its process was killed by {killer}.")
    print(outcome.what, file=sys.stderr, flush=True)
    return outcome


def _out_of_memory() -> Outcome:
    return Outcome(
        ok=False,
        kind="memory",
        what="Its process was killed by the kernel for want of memory.",
        why="The machine's memory, or the container's limit, was used up.",
        remedy="Let it need less (fewer workers, `where.parallel_stages=1`) or give it more, and run again "
        "to resume; `casa doctor` shows the machine's memory.",
    )


def _timed_out(timeout_s: float) -> Outcome:
    return Outcome(
        ok=False,
        kind="timeout",
        what=f"It took longer than {duration(timeout_s)}, which `where.timeouts` gives it, and was ended.",
        why="The end of its log has where each of its threads stood.",
        remedy="If it was still at work, give it more in `where.timeouts`, and run again to resume; if it "
        "hung, `casa logs` shows where.",
    )


def main() -> int:
    """Run the job whose spec is named on the command line; 0 when its artifact is whole."""
    limit_threads()
    spec_path = open_folder(sys.argv[1])
    timeout_s = float(sys.argv[2]) if len(sys.argv) > 2 else None
    records, job_id = Records(spec_path.parent.parent), spec_path.name.removesuffix(".json")
    copier, own = copy_output(records.log_path(job_id))
    if isinstance(spec_path, RemotePath) and spec_path.scheme == "s3":
        import s3fs  # noqa: F401 - once for both processes; it starts no thread
    note = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - for both processes, to their ends
    ending = run_supervised(lambda: _run_stage(spec_path, note), timeout_s)
    outcome = _outcome(note, ending, timeout_s)
    end_copying(copier, own)  # before the outcome, so that it is whole for what reads it then
    if outcome is None:
        return ending.code if ending.code > 0 else 128 - ending.code
    try:
        records.write_outcome(job_id, outcome)
    except StoreError as error:  # as on a full disk: the job's log, which Ray keeps too, has the reason
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
