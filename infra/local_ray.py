"""One Ray head on this machine, shared by every run on the same store, listening on loopback only.

``start`` brings it up in a process group of its own, so that it outlives the command that started it; a
session file lets the next command find it again; ``stop`` ends every process it started, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from casa_core.errors import ClusterError
from infra import request_ids
from infra.processes import FOLDER_MARK, MARK, end_session, is_alive, sessions_of, start_mark

SESSION_FILE = "ray.json"
LOG_FILE = "ray.log"
STOPPED_FILE = "stopped"
START_TIMEOUT_S = 300.0
"""Seconds for a head that runs to answer: 5 on a machine at rest, over 60 where 30 programs share a core."""
log = logging.getLogger(__name__)
LONGEST_BASE = 22
"""Characters of a path to which a session's folder, of 18 with its slash, and Ray's 63 can be added."""
LONGEST_SCRATCH = 70
"""Characters of a TMPDIR in which multiprocessing's sockets, of 31 more, fit."""
BUSY_S = 30.0
"""Seconds without an answer after which a running head counts as hung, and another takes its place."""

LOOPBACK_ENVIRONMENT = {
    # Ray's core (GCS, raylet, workers) binds to loopback when this is off; on Linux it is on by default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The head is unreachable from outside this machine, so it needs no token.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Each worker started in advance would cost 80 MB, whether or not the driver uses it.
    "RAY_prestart_worker_first_driver": "0",
    # A job whose process is killed while it starts would be pending for Ray's 15 minutes, which are meant for
    # nodes that have yet to be bought.
    "RAY_JOB_START_TIMEOUT_SECONDS": "90",
    # Three checks that fail in a row replace a killed HTTP proxy of Ray Serve: by default they take 30 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # torch.distributed's gloo otherwise picks the interface of the host's name.
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """A running local head.

    Attributes:
        session_id: Marks every process of the session (see ``infra.processes``).
        address: URL of the dashboard and of the job API.
        pid, started: The head's process id and its ``infra.processes.start_mark``; together they survive
            pid reuse.
        folder: Ray's temporary folder of this session.
    """

    session_id: str
    address: str
    pid: int
    started: str
    folder: str


def read_session(folder: Path) -> RaySession | None:
    """The session that was last started from ``folder``, running or not; ``None`` if there is none.

    A session file that cannot be read, as after a loss of power, counts as absent.
    """
    try:
        return RaySession(**json.loads((folder / SESSION_FILE).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        log.warning("%s is damaged and counts as absent: %s", folder / SESSION_FILE, error)
        return None


def is_healthy(session: RaySession, timeout_s: float = 5.0) -> bool:
    """Whether the head is running and its job API answers."""
    return is_running(session) and answers(f"{session.address}/api/version", timeout_s)


def is_running(session: RaySession) -> bool:
    """Whether the head and its raylet are running, without which no job ever starts.

    A raylet ends itself when its agent is killed, as for want of memory. The head takes it for one that was
    asked to, goes on without it, and its job API answers as before.
    """
    if not is_alive(session.pid, session.started):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(session.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                    return True
    return False


def answers(url: str, timeout_s: float) -> bool:
    """Whether a GET of ``url`` is answered with 200. Asks no proxy: the address may be this machine's own."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=timeout_s) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False


def find(folder: Path, timeout_s: float = 5.0) -> RaySession | None:
    """The healthy session of ``folder``, or ``None``."""
    session = read_session(folder)
    return session if session is not None and is_healthy(session, timeout_s) else None


def start(
    folder: Path, *, num_cpus: int, object_store_mb: int, python_path: Path | None = None
) -> RaySession:
    """Find the head of ``folder``, or start one.

    Args:
        folder: Folder of the session file and the head's log; one head per folder.
        num_cpus: CPUs that Ray may hand out. More than the machine has is fine: stages share them.
        object_store_mb: Size of Ray's shared-memory object store, MiB.
        python_path: Folder that jobs import this project from, where it is not installed.

    Raises:
        ClusterError: If the head does not come up; holds the end of its log.
    """
    with _locked(folder):
        if session := find(folder, BUSY_S):
            return session
        _end(folder)  # A dead head can leave workers behind, which must not write beside the new ones.
        return _launch(folder, num_cpus, object_store_mb, python_path)


def stop(folder: Path) -> list[int]:
    """End the session of ``folder`` with all its processes, if there are any; returns the ids of these."""
    if not folder.is_dir() and not sessions_of(folder):
        return []
    with contextlib.ExitStack() as held:
        # A disk that is full or read-only by now does not keep what runs from being ended.
        with _noted("the session is ended without a lock"):
            held.enter_context(_locked(folder))
        session = read_session(folder)
        session_id = session.session_id if session else next(iter(sessions_of(folder)), None)
        if session_id is not None:
            # Written before anything ends, so that a stop can be distinguished from a crash.
            with _noted("a run that watches may take the stop for a crash"):
                (folder / STOPPED_FILE).write_text(session_id)
        return _end(folder)


@contextlib.contextmanager
def _noted(consequence: str) -> Iterator[None]:
    """Warns of a disk's error, and goes on."""
    try:
        yield
    except OSError as error:
        log.warning("%s; %s", error, consequence)


def was_stopped(folder: Path, session_id: str) -> bool:
    """Whether a session ended because ``stop`` was asked for, rather than by itself."""
    marker = folder / STOPPED_FILE
    return marker.is_file() and marker.read_text() == session_id


def _end(folder: Path) -> list[int]:
    session = read_session(folder)
    ended = []
    if session is not None:
        head = session.pid if is_alive(session.pid, session.started) else None
        ended += end_session(session.session_id, Path(session.folder), head=head)
        for temporary in (session.folder, *_temporary_folders(session.session_id)):
            shutil.rmtree(temporary, ignore_errors=True)
    with _noted("the session file stays, and counts as that of a head that is gone"):
        (folder / SESSION_FILE).unlink(missing_ok=True)
    # The store may have been removed while its head was running, and the session file with it.
    for session_id in sessions_of(folder):
        for temporary in _temporary_folders(session_id):
            ended += end_session(session_id, temporary)
            shutil.rmtree(temporary, ignore_errors=True)
    return ended


def _launch(folder: Path, num_cpus: int, object_store_mb: int, python_path: Path | None) -> RaySession:
    session_id = uuid.uuid4().hex[:12]
    temporary = _short_temporary_folder(session_id)
    dashboard_port, client_port = _free_ports(2)
    marks = {MARK: session_id, FOLDER_MARK: str(folder)}
    scratch = _temporary_folders(session_id)[0] / "tmp"  # what killed jobs leave there goes with the session
    if len(str(scratch)) > LONGEST_SCRATCH:
        scratch = temporary / "tmp"
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **LOOPBACK_ENVIRONMENT,
        **request_ids.ENVIRONMENT,
        **marks,
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
    }
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # They would make jobs join some other cluster.
        environment.pop(name, None)
    if python_path is not None:
        paths = [str(python_path), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    command = [
        *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--port=0", f"--num-cpus={num_cpus}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
        *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={client_port}"),
        *(f"--object-store-memory={object_store_mb * 2**20}", f"--temp-dir={temporary}"),
        "--disable-usage-stats",
    ]
    with (folder / LOG_FILE).open("wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    session = RaySession(
        session_id=session_id,
        address=f"http://127.0.0.1:{dashboard_port}",
        pid=head.pid,
        started=start_mark(head.pid),
        folder=str(temporary),
    )
    # Written before the head is up, so that the session can be cleaned up if this process ends now.
    partial = folder / f"{SESSION_FILE}.partial"
    partial.write_text(json.dumps(asdict(session), indent=2))
    partial.replace(folder / SESSION_FILE)
    _await_ready(session, head, folder)
    return session


def _await_ready(session: RaySession, head: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        # The API is up before the agent that takes jobs: what is refused in between is sent again.
        if is_healthy(session, timeout_s=1.0):
            return
        time.sleep(0.1)
    why = (
        f"It ended with code {head.returncode}." if head.poll() is not None else "It did not answer in time."
    )
    log = (folder / LOG_FILE).read_text(errors="replace")
    _end(folder)
    raise ClusterError(
        "The local Ray head did not come up.",
        f"{why} The end of its log:\n{_tail(log)}.",
        "`casa doctor` checks memory, disk and Ray; `where.ray.object_store_mb` sizes the object store.",
    )


def _short_temporary_folder(session_id: str) -> Path:
    """A private folder for Ray. Its sockets lie 63 characters deeper and may not pass 107 in all."""
    folder = base_of_temporary_folder() / f"casa-{session_id}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ClusterError(
            f"No folder for Ray's sockets can be made in {folder.parent}.",
            f"{error}. A Unix socket's path may have 107 characters at most, and Ray adds 63.",
            "Set TMPDIR to a folder that can be written, with a path of at most 22 characters.",
        ) from error
    return folder


def base_of_temporary_folder() -> Path:
    """Where sessions' temporary folders are made: ``TMPDIR``, or ``/tmp`` where that is too long a path."""
    given = Path(tempfile.gettempdir())
    return given if len(str(given)) <= LONGEST_BASE else Path("/tmp")


def _temporary_folders(session_id: str) -> list[Path]:
    """Where a session's temporary folder may be."""
    return [Path(base) / f"casa-{session_id}" for base in dict.fromkeys((tempfile.gettempdir(), "/tmp"))]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _tail(text: str, lines: int = 20) -> str:
    without_colours = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(without_colours.splitlines()[-lines:])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One starter or stopper at a time; the kernel frees the lock when its process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
