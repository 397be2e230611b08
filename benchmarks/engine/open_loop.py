"""Live load: frames come at their times, whether or not the engine is ready; what became of each.

The schedule is fixed before the run: every camera has its own phase, and a frame that comes while a step runs
is pushed after it, but was due as if it had not waited. Beside the frames a number of answers always runs.
"""

from __future__ import annotations

import heapq
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from casa_core.engine.events import Event, Failed, FrameDropped, FrameRefused
from casa_core.engine.load import Load
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    StreamSettings,
)
from pipelines.bench.observed import Frame

SECOND = 1.0
"""Seconds between two looks at memory and shares."""


class Loop(Protocol):
    """The part of an engine's loop that is measured."""

    @property
    def load(self) -> Load: ...
    @property
    def busy(self) -> bool: ...
    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int: ...
    def open_stream(self, settings: StreamSettings | None = None) -> int: ...
    def push_frame(self, number: int, image: Any, timestamp: float, *, due: float | None = None) -> None: ...
    def step(self) -> list[Event]: ...
    def wait(self, timeout_s: float | None = None) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What comes when.

    Attributes:
        streams: Live streams, open from the beginning.
        fps: Frames per second of each.
        deadline: Seconds from a frame to its last word.
        answers: Answers that run at any time.
        warm_up, seconds: The run; only what is due after the first of the two counts.
        stream: Settings of every stream.
        frames: Encoded pictures, one after another.
        question: Makes a request of one of them.
        extra: Requests submitted during the run, by seconds after its beginning.
    """

    streams: int
    fps: float
    deadline: float
    answers: int
    warm_up: float
    seconds: float
    stream: StreamSettings
    frames: Iterator[bytes]
    question: Any
    extra: Sequence[tuple[float, str, GenerationRequest]] = ()


@dataclass(slots=True)
class Request:
    """One answer: when it was asked for, and when its first token and its end came."""

    asked: float
    name: str = ""
    first: float = math.inf
    ended: float = math.inf
    outcome: str = "running"


@dataclass(slots=True)
class Observed:
    """What happened in a run.

    Attributes:
        began, ended: What counts of it, by the clock.
        frames: Of each stream, in order.
        requests: All answers.
        steps: Beginning and seconds of each step.
        looks: Time, resident bytes, and the shares of streams and of their images in the engine's time.
        cpu: Processor seconds of what counts.
    """

    began: float
    ended: float
    frames: list[list[Frame]]
    requests: list[Request] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    looks: list[tuple[float, int, float, float]] = field(default_factory=list)
    cpu: float = 0.0


def resident_now() -> int:
    """Resident memory of this process (Linux), bytes, as it is: nothing is collected for it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Run:
    """One run of a plan on a loop.

    Args:
        seed: Of the cameras' phases.
    """

    def __init__(self, loop: Loop, plan: Plan, seed: int = 0) -> None:
        self._loop, self._plan = loop, plan
        self._numbers = {loop.open_stream(plan.stream): n for n in range(plan.streams)}
        self._asked: dict[int, Request] = {}
        start = time.monotonic() + 0.05
        began = start + plan.warm_up
        self._seen = Observed(began, began + plan.seconds, [[] for _ in range(plan.streams)])
        chance = random.Random(seed)
        self._coming = [(start + chance.random() / plan.fps, number) for number in self._numbers]
        heapq.heapify(self._coming)
        self._extra = sorted(((start + at, name, request) for at, name, request in plan.extra), key=_first)
        self._next_look, self._cpu = began, 0.0

    def observe(self) -> Observed:
        """Run it."""
        loop, seen = self._loop, self._seen
        while (now := time.monotonic()) < seen.ended:
            self._push(now)
            self._look(now)
            if loop.busy:
                began = time.monotonic()
                events = loop.step()
                seen.steps.append((began, time.monotonic() - began))
                self._take(events)
            else:
                loop.wait(max(min(self._next_event(), seen.ended) - time.monotonic(), 0.0))
        seen.cpu = time.process_time() - self._cpu
        return seen

    def _next_event(self) -> float:
        return min(
            self._coming[0][0] if self._coming else math.inf,
            self._extra[0][0] if self._extra else math.inf,
        )

    def _push(self, now: float) -> None:
        plan = self._plan
        while self._coming and self._coming[0][0] <= now:
            came, number = heapq.heapreplace(
                self._coming, (self._coming[0][0] + 1 / plan.fps, self._coming[0][1])
            )
            frames = self._seen.frames[self._numbers[number]]
            frames.append(Frame(came, came + plan.deadline))
            self._loop.push_frame(number, next(plan.frames), len(frames) - 1.0, due=came + plan.deadline)
        while self._extra and self._extra[0][0] <= now:
            _, name, request = self._extra.pop(0)
            self._ask(request, name, now)
        running = sum(not request.name for request in self._asked.values())
        for _ in range(plan.answers - running):
            self._ask(plan.question(next(plan.frames)), "", now)

    def _ask(self, request: GenerationRequest, name: str, now: float) -> None:
        asked = Request(now, name)
        self._seen.requests.append(asked)
        self._asked[self._loop.submit(request, streamed=True)] = asked

    def _look(self, now: float) -> None:
        if now < self._next_look:
            return
        if not self._seen.looks:
            self._cpu = time.process_time()
        load = self._loop.load
        self._seen.looks.append((now, resident_now(), load.live.share, load.embedding.share))
        self._next_look += SECOND

    def _take(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        for event in events:
            if (request := self._asked.get(event.sequence)) is not None:
                request.first = min(request.first, now)
                if not isinstance(event.outcome, GenerationDelta):
                    request.ended = now
                    request.outcome = type(event.outcome).__name__
                    del self._asked[event.sequence]
                continue
            self._settle(event, now)

    def _settle(self, event: Event, now: float) -> None:
        frames = self._seen.frames[self._numbers[event.sequence]]
        match event.outcome:
            case CaptionEvent() as caption:
                frame = frames[int(caption.timestamp)]
                frame.ended, frame.fate, frame.tokens = now, "answered", len(caption.token_ids)
            case FrameDropped(timestamp):
                frames[int(timestamp)].fate = "dropped"
            case FrameRefused(timestamp, _):
                frames[int(timestamp)].fate = "refused"
            case Failed(error):
                raise error
            case GenerationDelta() | GenerationResult():
                raise AssertionError("A stream has no answers.")


def _first(entry: tuple[float, str, GenerationRequest]) -> float:
    return entry[0]
