"""Why an attempt at a stage failed, how often each kind is tried again, and after which wait.

``where.retries`` bounds every kind. The waits double: what was lost has time to come back, and a cluster that
loses all of its stages is not asked for them again and again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipelines.dag.records import Outcome

FailureKind = Literal["lost", "store", "memory", "timeout", "error"]
"""``lost``: a process, a node or a connection; ``store``: not reached; ``memory``: killed by the kernel or by
Ray for want of it; ``timeout``: longer than ``where.timeouts``; ``error``: the stage's own."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How a kind of failure is tried again.

    Attributes:
        name: The kind, for people.
        most: Further attempts, where ``where.retries`` allows as many.
        first_s: Seconds before the first of them; each further wait is twice as long.
        longest_s: The longest wait, s.
    """

    name: str
    most: int
    first_s: float = 0.0
    longest_s: float = 0.0


RETRIES: dict[FailureKind, Retries] = {
    "lost": Retries("lost", most=1000, first_s=1.0, longest_s=60.0),
    # Every request was already made again for about 8 s: what is out of reach then takes longer.
    "store": Retries("store out of reach", most=1000, first_s=5.0, longest_s=120.0),
    # Once: a neighbour may have had the memory. A second time it is the stage's own need.
    "memory": Retries("out of memory", most=1, first_s=10.0, longest_s=10.0),
    "timeout": Retries("timed out", most=1, first_s=1.0, longest_s=1.0),
    "error": Retries("failed", most=0),
}


class Attempts:
    """Counts a run's failed attempts at its stages, and decides whether another follows.

    Args:
        retries: ``where.retries``.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failed: Counter[tuple[str, FailureKind]] = Counter()
        self._last_errors: dict[str, str] = {}

    def wait_s(self, stage: str, outcome: Outcome | None) -> float | None:
        """Count a failed attempt; seconds until the next one, or ``None`` where there is none.

        An error that explains itself, and comes back, is no accident, though its kind may pass: a port that
        is taken, twice running. A store's and a time-out's are the same each time.
        """
        kind = kind_of(outcome)
        self._failed[stage, kind] += 1
        explained = outcome.what if outcome is not None and outcome.explained and kind == "lost" else ""
        repeated = bool(explained) and self._last_errors.get(stage) == explained
        self._last_errors[stage] = explained
        retries, failed = RETRIES[kind], self._failed[stage, kind]
        if repeated or failed > min(retries.most, self._retries):
            return None
        return min(retries.first_s * 2 ** (failed - 1), retries.longest_s)

    def made(self, stage: str) -> int:
        """Failed attempts at a stage."""
        return sum(count for (name, _), count in self._failed.items() if name == stage)


def kind_of(outcome: Outcome | None) -> FailureKind:
    """Kind of a failed attempt; one that left no outcome, or no artifact, was lost."""
    return "lost" if outcome is None or outcome.ok else outcome.kind
