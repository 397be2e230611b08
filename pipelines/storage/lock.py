"""Locks that one process holds at a time, by a name in a folder on a disk or on an object store.

On a disk the kernel frees a lock when its holder ends. An object store has no locks: there it is a lease,
``<name>/<number>``. A process takes the next number by creating it where there is none, which the store lets
one of several do, and puts it again every ``BEAT_S``. A lease that has not changed for ``STALE_S``, by the
clock of the process that waits for it, was left by a killed holder. A holder that was suspended for so long
finds the next number, and must end what it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from casa_core.errors import ClusterError, StoreError
from pipelines.storage.uri import Folder

BEAT_S = 4.0
STALE_S = 20.0
RELEASED = "released"
_POLL_S = 0.05


@contextlib.contextmanager
def locked(path: Folder, wait_s: float, lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock during the block.

    Args:
        path: Names the lock; its folder is there.
        wait_s: Seconds to wait for another holder; on an object store more than ``STALE_S``.
        lost: Called in a thread once another process has taken the lease from this one.

    Raises:
        ClusterError: If another process still holds it after ``wait_s`` seconds.
    """
    deadline = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        if isinstance(path, Path):
            file = stack.enter_context(path.open("a"))
            _wait(lambda: _try_lock(file), deadline, path, wait_s)
        else:
            lease = _Lease(path, lost)
            _wait(lease.try_take, deadline, path, wait_s)
            stack.enter_context(lease.kept())
        yield


def _wait(take: Callable[[], bool], deadline: float, path: Folder, wait_s: float) -> None:
    pause = _POLL_S
    while not take():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Another process still holds {path.name}.",
                f"It is starting the same stage, or still writing its artifact; waited {wait_s:.0f} s.",
                "`casa status` shows what runs, `casa stop` ends it.",
            )
        time.sleep(pause)
        if not isinstance(path, Path):
            pause = min(2 * pause, BEAT_S / 4)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Lease:
    def __init__(self, folder: Folder, lost: Callable[[], None]) -> None:
        self._folder, self._lost = folder, lost
        self._holder = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex[:12]}"
        self._number = 0
        self._seen: tuple[int, str] = (0, "")
        self._since = time.monotonic()

    def try_take(self) -> bool:
        """Whether the lease is ours now."""
        number, content = self._newest()
        if number and content.startswith(self._holder):  # ours: only the answer was lost
            self._number = number
            return True
        if (number, content) != self._seen:
            self._seen, self._since = (number, content), time.monotonic()
        if number and content != RELEASED and time.monotonic() - self._since < STALE_S:
            return False
        with contextlib.suppress(FileExistsError):
            self._at(number + 1).write_bytes(f"{self._holder} 0".encode(), only_new=True)
            self._number = number + 1
        return self._number > 0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(StoreError):  # it goes stale by itself
                self._at(self._number).write_bytes(RELEASED.encode())

    def _beat(self, over: threading.Event) -> None:
        for older in self._numbers():
            if older < self._number:
                with contextlib.suppress(StoreError):
                    self._at(older).unlink(missing_ok=True)
        for beat in itertools.count(1):
            if over.wait(BEAT_S):
                return
            with contextlib.suppress(StoreError):
                if self._at(self._number + 1).is_file():
                    self._lost()
                    return
                self._at(self._number).write_bytes(f"{self._holder} {beat}".encode())

    def _newest(self) -> tuple[int, str]:
        while numbers := self._numbers():
            with contextlib.suppress(FileNotFoundError):  # the next holder has removed it
                return numbers[-1], self._at(numbers[-1]).read_text()
        return 0, ""

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir())

    def _at(self, number: int) -> Any:
        return self._folder / f"{number:08d}"
