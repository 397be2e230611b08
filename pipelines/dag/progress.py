"""Progress of a stage, as single lines in its job's log: writing and reading them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "::progress "
INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, in its own unit."""

    done: float
    total: float
    message: str = ""


class ProgressPrinter:
    """The ``progress`` of a stage's context: at most one line each ``INTERVAL_S``, and the last one."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: float, total: float, message: str = "") -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + INTERVAL_S
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


class LogTail:
    """Reads a growing log line by line; a line counts once it is ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """Lines that have been added since the last call; none while the file does not exist."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        self._offset += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log without its progress lines."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200_000))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if not line.startswith(PREFIX)][-count:]
