"""Says what is waited for: a line on standard error now and then, for as long as something takes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

FIRST_S = EVERY_S = 5.0
"""Seconds before the first line, and between two: below ten also where a busy machine wakes the thread late,
or where a request is made again after a pause."""


class Announcer:
    """Names what is waited for, over one attempt or several.

    Args:
        what: What is waited for, as a clause that ``after 9 s`` can follow.
        first_s: Seconds before the first line; what takes less is silent.
        every_s: Seconds between the lines.
    """

    def __init__(self, what: str, *, first_s: float = FIRST_S, every_s: float = EVERY_S) -> None:
        self._what, self._first_s, self._every_s = what, first_s, every_s
        self._since: float | None = None
        self._due = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """An attempt. One that fails leaves the wait going on: the next counts from where the first began."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._due = now, now + self._first_s
        over = threading.Event()
        thread = threading.Thread(target=self._say, args=(self._since, over), name="announcer", daemon=True)
        thread.start()
        try:
            yield
            self._since = None
        finally:
            over.set()

    def _say(self, since: float, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._due - time.monotonic())):
            # looked up anew: a live table on the terminal puts its own stream in the place of this one
            print(f"{self._what}, after {time.monotonic() - since:.0f} s …", file=sys.stderr, flush=True)
            self._due = time.monotonic() + self._every_s


@contextlib.contextmanager
def announced(what: str, *, first_s: float = FIRST_S, every_s: float = EVERY_S) -> Iterator[None]:
    """Names what the block waits for, until it ends (see :class:`Announcer`)."""
    with Announcer(what, first_s=first_s, every_s=every_s).waiting():
        yield
