"""What a run amounts to: percentiles, throughput, deadlines kept, stalls, refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.bench.observed import AskedAnswer, Observed, percentile, stalls_of

PERCENTS = (50, 95, 99)
SLOW_CLIENT_S = 0.05
"""A generator that sends later than this after the planned time measures itself."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of some times, seconds; NaN where there are none."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The percentiles of values."""
        return cls(*(percentile(values, percent) for percent in PERCENTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A run in numbers. Times count from the planned time of each call or frame.

    Attributes:
        answers, sessions: Planned ones, by fate: ``answered``, ``failed``, ``waiting``, or a refusal's code.
        first_token, per_token, answer: Times of those that were answered; ``per_token`` after the first.
        sent_late: From the planned time of a call to its sending: what the generator itself added.
        answers_per_second, tokens_per_second: While work went on.
        frames: Planned frames of admitted sessions, by fate; ``answered`` in time or ``late``.
        caption: From a frame's time to its words.
        attainment: Part of those frames whose words were there when they were due.
        underruns, stall_s: How often viewers had no words of the latest frames when they were due, and for
            how long, all sessions together.
    """

    answers: dict[str, int]
    sessions: dict[str, int]
    frames: dict[str, int]
    first_token: Spread
    per_token: Spread
    answer: Spread
    caption: Spread
    sent_late: Spread
    answers_per_second: float
    tokens_per_second: float
    attainment: float
    underruns: int
    stall_s: float

    @property
    def generator_was_slow(self) -> bool:
        """Whether calls left so late that the machine of the generator is part of the figures."""
        return self.sent_late.p95 > SLOW_CLIENT_S

    def plain(self) -> dict[str, Any]:
        """For JSON, which holds no NaN."""
        return _plain(asdict(self))


def figures(seen: Observed) -> Figures:
    """The numbers of a run."""
    done = [one for one in seen.answers if one.fate == "answered"]
    frames = [frame for view in seen.sessions for frame in view.frames]
    fates = Counter("late" if one.fate == "answered" and not one.on_time else one.fate for one in frames)
    stalls = [stall for view in seen.sessions for stall in stalls_of(view.frames, seen.ended)]
    worked = max([seen.began + seen.seconds, *(one.ended for one in done)]) - seen.began
    return Figures(
        answers=dict(Counter(one.fate for one in seen.answers)),
        sessions=dict(Counter(one.fate for one in seen.sessions)),
        frames=dict(fates),
        first_token=Spread.of([one.first - one.planned for one in done]),
        per_token=Spread.of([(one.ended - one.first) / (one.tokens - 1) for one in done if one.tokens > 1]),
        answer=Spread.of([one.ended - one.planned for one in done]),
        caption=Spread.of([one.ended - one.came for one in frames if one.fate == "answered"]),
        sent_late=Spread.of([one.sent - one.planned for one in seen.answers if math.isfinite(one.sent)]),
        answers_per_second=len(done) / worked,
        tokens_per_second=_tokens(done, seen) / worked,
        attainment=fates["answered"] / len(frames) if frames else math.nan,
        underruns=len(stalls),
        stall_s=sum(end - begin for begin, end in stalls),
    )


def _tokens(done: Sequence[AskedAnswer], seen: Observed) -> int:
    live = sum(frame.tokens for view in seen.sessions for frame in view.frames)
    return sum(one.tokens for one in done) + live


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
