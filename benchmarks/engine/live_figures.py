"""What a run of live load amounts to: deadlines kept, stalls, times of answers, memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.engine.open_loop import Observed, Plan, Request
from benchmarks.measure import Slope, slope
from pipelines.bench.observed import percentile, stalls_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A run in numbers; seconds, shares and bytes.

    Attributes:
        streams, answers: As planned.
        frames: That were due in the run.
        on_time, late, dropped, refused, waiting: Each of them is one of these; ``waiting`` were due and still
            had no words at the end.
        underruns: How often a viewer had no words of the latest frames when they were due.
        stall_s: For how long, of all streams together.
        frame_p50, frame_p95: From a frame to its last word, of those that were answered.
        tokens_per_stream: Tokens per second.
        done: Answers finished.
        ttft_p50, ttft_p95, answer_p50, answer_p95: To an answer's first token, and to its end.
        step_p50, step_p95: Of the engine.
        busy: The part of the time that the engine spent in steps.
        cores: Processor seconds per second, of all threads.
        live, embedding: Shares of the engine's time for streams, and for their images, on average.
        growth: Of resident memory, bytes per second.
    """

    streams: int
    answers: int
    frames: int
    on_time: int
    late: int
    dropped: int
    refused: int
    waiting: int
    underruns: int
    stall_s: float
    frame_p50: float
    frame_p95: float
    tokens_per_stream: float
    done: int
    ttft_p50: float
    ttft_p95: float
    answer_p50: float
    answer_p95: float
    step_p50: float
    step_p95: float
    busy: float
    cores: float
    live: float
    embedding: float
    growth: Slope

    @property
    def attainment(self) -> float:
        """The part of the frames whose words came on time."""
        return self.on_time / self.frames if self.frames else 1.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "attainment": self.attainment}


def figures(plan: Plan, seen: Observed) -> Figures:
    """The numbers of a run."""
    counted = [[one for one in frames if seen.began <= one.due <= seen.ended] for frames in seen.frames]
    all_frames = [one for frames in counted for one in frames]
    fates = Counter("late" if one.fate == "answered" and not one.on_time else one.fate for one in all_frames)
    stalls = [stall for frames in counted for stall in stalls_of(frames, seen.ended)]
    took = [one.ended - one.came for one in all_frames if one.fate == "answered"]
    done = [
        one for one in seen.requests if not one.name and one.asked >= seen.began and one.ended <= seen.ended
    ]
    steps = [seconds for began, seconds in seen.steps if began >= seen.began]
    looks = np.asarray(seen.looks)
    return Figures(
        streams=plan.streams,
        answers=plan.answers,
        frames=len(all_frames),
        on_time=fates["answered"],
        late=fates["late"],
        dropped=fates["dropped"],
        refused=fates["refused"],
        waiting=fates["waiting"],
        underruns=len(stalls),
        stall_s=sum(end - begin for begin, end in stalls),
        frame_p50=percentile(took, 50),
        frame_p95=percentile(took, 95),
        tokens_per_stream=sum(one.tokens for one in all_frames) / plan.seconds / max(plan.streams, 1),
        done=len(done),
        ttft_p50=percentile([one.first - one.asked for one in done], 50),
        ttft_p95=percentile([one.first - one.asked for one in done], 95),
        answer_p50=percentile([one.ended - one.asked for one in done], 50),
        answer_p95=percentile([one.ended - one.asked for one in done], 95),
        step_p50=percentile(steps, 50),
        step_p95=percentile(steps, 95),
        busy=sum(steps) / plan.seconds,
        cores=seen.cpu / plan.seconds,
        live=float(looks[:, 2].mean()),
        embedding=float(looks[:, 3].mean()),
        growth=slope(looks[:, 0].tolist(), looks[:, 1].tolist(), block=10, robust=False),
    )


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Frames before and during requests that take much, and the steps of the engine; seconds.

    Attributes:
        before, during: P95 from a frame to its last word.
        step: P95 of the engine's steps before.
        frames: How many came during.
        outcomes: What became of each request, and after how long.
    """

    before: float
    during: float
    step: float
    frames: int
    outcomes: list[str]

    @property
    def holds(self) -> bool:
        """Whether frames took no more than a step longer."""
        return self.during <= self.before + self.step


def disturbance(seen: Observed) -> Disturbance:
    """What the named requests of a run did to its frames."""
    named = [one for one in seen.requests if one.name]
    spans = [(one.asked, min(one.ended, seen.ended)) for one in named]
    first = min(begin for begin, _ in spans)
    frames = [one for frames in seen.frames for one in frames if seen.began <= one.due <= seen.ended]
    during = [one for one in frames if any(begin <= one.ended and one.came <= end for begin, end in spans)]
    before = [one.ended - one.came for one in frames if one.ended < first]
    steps = [seconds for began, seconds in seen.steps if seen.began <= began < first]
    return Disturbance(
        percentile(before, 95),
        percentile([one.ended - one.came for one in during], 95),
        percentile(steps, 95),
        len(during),
        [_told(one) for one in named],
    )


def _told(request: Request) -> str:
    return f"{request.name}: {request.outcome} after {request.ended - request.asked:.2f} s"
