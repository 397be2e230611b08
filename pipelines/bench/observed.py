"""What became of planned work: answers and live frames, each counted from the time it was planned for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Frame:
    """One live frame: when it came, when its words were due and when they were there; clock seconds.

    Attributes:
        fate: ``answered``, ``dropped``, ``refused``, or ``waiting`` at the end of the run.
    """

    came: float
    due: float
    ended: float = math.inf
    fate: str = "waiting"
    tokens: int = 0

    @property
    def on_time(self) -> bool:
        """Whether its words were there when they were due."""
        return self.fate == "answered" and self.ended <= self.due


@dataclass(slots=True)
class AskedAnswer:
    """One answer.

    Attributes:
        planned: When it was to be asked for: its times count from then, whether or not it was sent then.
        sent, first, ended: When it was sent, and when its first token and its end came.
        tokens: Generated, by the endpoint's own account.
        fate: ``answered``, the code of its refusal, ``failed``, or ``waiting`` at the end of the run.
    """

    planned: float
    sent: float = math.inf
    first: float = math.inf
    ended: float = math.inf
    tokens: int = 0
    fate: str = "waiting"


@dataclass(slots=True)
class LiveView:
    """One live session.

    Attributes:
        planned: When it was to begin.
        frames: In order; those of a session that was refused are none.
        fate: As of an answer; ``answered``: it went on to its end.
    """

    planned: float
    frames: list[Frame] = field(default_factory=list)
    fate: str = "waiting"


@dataclass(slots=True)
class Observed:
    """A whole run.

    Attributes:
        began, seconds: The time in which work was planned.
        ended: When the last of it had ended, or was given up.
    """

    began: float
    seconds: float
    ended: float = 0.0
    answers: list[AskedAnswer] = field(default_factory=list)
    sessions: list[LiveView] = field(default_factory=list)


def stalls_of(frames: Sequence[Frame], end: float) -> list[tuple[float, float]]:
    """When a viewer was without the words that were due: from each frame's deadline until its words, or those
    of a newer frame, came; overlapping ones are one."""
    stalls: list[tuple[float, float]] = []
    served = math.inf
    for frame in reversed(frames):
        served = min(served, frame.ended)
        until = min(served, end)
        if until <= frame.due:
            continue
        if stalls and until >= stalls[-1][0]:
            stalls[-1] = frame.due, max(until, stalls[-1][1])
        else:
            stalls.append((frame.due, until))
    return stalls[::-1]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many are not above; NaN of nothing, infinite where words never came."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(math.ceil((len(ordered) - 1) * percent / 100), 0)]
