"""The process above a stage's: sees how that ended, and ends it when its time is up.

A stage's process may hang in a library with Python's lock held, or be killed by the kernel. What notices
either is a second process on the same node, forked before much is loaded, so that it costs little memory. It
needs no runner, and no clock but the node's monotonic one.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

DUMP_SIGNAL = signal.SIGUSR1
"""A stage's process writes the stacks of its threads to its log when it gets this, even where it hangs."""
DUMP_S = 1.0
"""Seconds that it has to write them."""
LOOK_S = 1.0
MEMORY_S = 10
"""Seconds before a kill in which the kernel's counter of kills for want of memory counts as this kill."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stage's process ended.

    Attributes:
        code: Its exit code; negative: the signal that ended it.
        out_of_memory: The kernel killed a process of this machine for want of memory just before.
        timed_out: It was ended because its time was up.
    """

    code: int
    out_of_memory: bool = False
    timed_out: bool = False


def run_supervised(run: Callable[[], int], timeout_s: float | None) -> Ending:
    """Fork: the stage's process is the child, which this process supervises to its end.

    The child ends when its supervisor does, so that a job that was killed leaves nothing that writes.

    Args:
        run: What the child does; gives its exit code.
        timeout_s: Seconds after which the child is ended, with its descendants.

    Returns:
        In the supervisor, once the child has ended. The child does not return.
    """
    alive, supervisors_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(supervisors_end)
        threading.Thread(target=_end_with_supervisor, args=(alive,), daemon=True).start()
        faulthandler.enable()
        faulthandler.register(DUMP_SIGNAL, all_threads=True)
        _leave(run())
    os.close(alive)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray stops a job: the stage has it too, and may tidy up
    return _Supervisor(child, timeout_s).wait()


def _leave(code: int) -> NoReturn:
    """End the process as multiprocessing ends its own: threads end, and what was registered for the end runs.

    To take the modules apart one by one takes longer than a small stage, and where libraries crash at it, the
    stage has been made.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_supervisor(alive: int) -> None:
    os.read(alive, 1)  # nothing is ever written: this returns at the end of the only writer
    os._exit(1)


class _Supervisor:
    def __init__(self, child: int, timeout_s: float | None) -> None:
        self._child = child
        self._deadline = time.monotonic() + timeout_s if timeout_s else None
        self._timed_out = False
        self._over = threading.Event()
        self._kills = deque([_memory_kills()], maxlen=round(MEMORY_S / LOOK_S))

    def wait(self) -> Ending:
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        watch.start()
        code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        self._over.set()
        watch.join()
        return Ending(code, _memory_kills() > self._kills[0], self._timed_out)

    def _watch(self) -> None:
        while not self._over.wait(self._until_next_look()):
            self._kills.append(_memory_kills())
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._timed_out = True
                self._end()
                return

    def _until_next_look(self) -> float:
        left = LOOK_S if self._deadline is None else self._deadline - time.monotonic()
        return max(0.0, min(LOOK_S, left))

    def _end(self) -> None:
        """End the child and its descendants; first it writes where it stands."""
        import psutil  # late: only here

        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(self._child, DUMP_SIGNAL)
            self._over.wait(DUMP_S)
            child = psutil.Process(self._child)
            for process in (*child.children(recursive=True), child):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def _memory_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it keeps
    no count. A container's own limit counts too."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
