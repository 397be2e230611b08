"""Progress of a stage, as single lines in its job's log: writing and reading them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from pipelines.storage.growing import Follower, last_bytes
from pipelines.storage.uri import Folder

PREFIX = "::progress "
INTERVAL_S = 0.2
NOTICED = 0.05
"""Share of the whole that is printed at once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, in its own unit."""

    done: float
    total: float
    message: str = ""


class ProgressPrinter:
    """The ``progress`` of a stage's context: at most one line per interval, but for steps that anyone would
    miss and the last one."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._next = 0.0
        self._share = 0.0

    def __call__(self, done: float, total: float, message: str = "") -> None:
        now, share = time.monotonic(), done / total if total else 0.0
        # A short step may be followed by one of minutes, which would stand under the short one's name.
        if now < self._next and done < total and abs(share - self._share) < NOTICED:
            return
        self._next, self._share = now + self._interval_s, share
        # One write per line: other threads print too.
        values = json.dumps([float(done), float(total), str(message)], ensure_ascii=False)
        print(f"{PREFIX}{values}\n", end="", flush=True)


def parse_progress(line: str) -> Progress | None:
    """The progress in a log line; ``None`` for any other line, a damaged one included."""
    if not line.startswith(PREFIX):
        return None
    try:
        done, total, message = json.loads(line.removeprefix(PREFIX))
        return Progress(float(done), float(total), str(message))
    except (ValueError, TypeError):
        return None  # Two processes wrote at once and mixed their lines.


def last_lines(log: Folder, count: int) -> list[str]:
    """The end of a log without its progress lines."""
    text = last_bytes(log, 200_000).decode(errors="replace")
    return [line for line in text.splitlines() if not line.startswith(PREFIX)][-count:]


def printed_lines(tail: Follower, *, now: bool = True) -> list[str]:
    """What was added to a log since the last call, progress lines included."""
    return [line.decode(errors="replace").rstrip("\r") for line in tail.lines(now=now)]
