"""Finding and ending the processes of one Ray session, and no others.

Ray gives its workers new process groups, renames them (which can overwrite their environment) and lets them
outlive a head that was killed. So a process belongs to a session when it shows any of three marks: the
session's id in its environment, the session's folder in its command line, or an open file in that folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

MARK = "CASA_RAY_SESSION"
"""Environment variable that every process of a session inherits; its value is the session's id."""

FOLDER_MARK = "CASA_RAY_SESSION_FOLDER"
"""Likewise; its value is the folder that the session was started for."""


def start_mark(pid: int) -> str:
    """What tells a process from a later one of the same id: when it started, counted from the boot.

    A time of day would not do on Linux, where it is that of the boot plus this: both move with the clock.

    Raises:
        psutil.NoSuchProcess: If there is none.
    """
    if not psutil.LINUX:
        return str(psutil.Process(pid).create_time())  # as the kernel wrote it down when the process began
    try:
        # The name before it may hold blanks and brackets.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"


def is_alive(pid: int, started: str) -> bool:
    """Whether ``pid`` is still the process whose ``start_mark`` was ``started``, and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and start_mark(pid) == started
    except psutil.NoSuchProcess:
        return False


def sessions_of(folder: Path) -> set[str]:
    """Ids of the sessions that were started for ``folder`` and have running processes, recorded or not."""
    environments = map(_environment, psutil.process_iter())
    return {e[MARK] for e in environments if e.get(FOLDER_MARK) == str(folder) and MARK in e}


def session_processes(session_id: str, folder: Path) -> list[psutil.Process]:
    """Every running process of a session, except this one.

    Args:
        session_id: Value of ``MARK`` in the environment of the session's processes.
        folder: The session's own temporary folder.
    """
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if _belongs(process, session_id, str(folder))]


def end_processes(processes: Iterable[psutil.Process], grace_s: float = 3.0) -> None:
    """Ask processes to end, then kill those that have not after ``grace_s`` seconds."""
    remaining = list(processes)
    for process in remaining:
        _signal(process.terminate)
    _, remaining = psutil.wait_procs(remaining, timeout=grace_s)
    for process in remaining:
        _signal(process.kill)
    psutil.wait_procs(remaining, timeout=grace_s)


def end_session(session_id: str, folder: Path, *, head: int | None = None, grace_s: float = 5.0) -> list[int]:
    """End a session, its head first, so that it takes its children along; returns the processes' ids."""
    processes = session_processes(session_id, folder)
    ended = [process.pid for process in processes]
    end_processes([process for process in processes if process.pid == head], grace_s)
    deadline = time.monotonic() + 10.0
    # A worker may start another process while it is being ended, hence the loop.
    while (processes := session_processes(session_id, folder)) and time.monotonic() < deadline:
        ended += [process.pid for process in processes if process.pid not in ended]
        end_processes(processes, grace_s=1.0)
    return ended


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def _belongs(process: psutil.Process, session_id: str, folder: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) == session_id:
            return True
        inside = folder + os.sep
        if any(inside in argument for argument in process.cmdline()):
            return True
        return any(file.path.startswith(inside) for file in process.open_files())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False  # Gone meanwhile, or another user's: not ours either way.


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()
