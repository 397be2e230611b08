"""The former way to serve, for comparison: one frame at a time, of one stream after another.

Each frame is decoded, embedded and read, and all its words are generated, before the next one of any stream;
answers wait for their turn between two frames, and of them one runs at a time, token by token. It computes
with the present engine's fast steps, so that the difference is that of sharing them alone: the former engine
was slower by what these gained too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from casa_core.engine.engine import Engine
from casa_core.engine.events import Event, FrameDropped
from casa_core.engine.load import Load
from casa_core.engine.requests import CaptionEvent, GenerationRequest, StreamSettings


@dataclass(slots=True)
class _Waiting:
    due: float
    image: Any
    timestamp: float


@dataclass(slots=True)
class OneAtATime:
    """A loop (:class:`benchmarks.engine.open_loop.Loop`) that serves what is due first, alone.

    Args:
        engine: Without threads.
    """

    engine: Engine
    _frames: dict[int, deque[_Waiting]] = field(default_factory=dict)
    _requests: deque[tuple[int, GenerationRequest]] = field(default_factory=deque)
    _events: list[Event] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _asked: int = 0

    @property
    def load(self) -> Load:
        """The engine's."""
        return self.engine.load

    @property
    def busy(self) -> bool:
        """Whether a frame or an answer waits."""
        return bool(any(self._frames.values()) or self._requests or self._numbers)

    def open_stream(self, settings: StreamSettings | None = None) -> int:
        """As the engine's."""
        number = self.engine.open_stream(settings)
        self._frames[number] = deque()
        return number

    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
        """Have it answered in its turn; its number is negative, as the engine has none for it yet."""
        self._asked -= 1
        self._requests.append((self._asked, request))
        return self._asked

    def push_frame(self, number: int, image: Any, timestamp: float, *, due: float | None = None) -> None:
        """As the engine's: the oldest of too many is dropped."""
        assert due is not None
        frames = self._frames[number]
        if len(frames) >= self.engine.settings.queued_frames:
            self._events.append(Event(number, FrameDropped(frames.popleft().timestamp)))
        frames.append(_Waiting(due, image, timestamp))

    def step(self) -> list[Event]:
        """The frame that is due first with all its words, then one token of the oldest answer."""
        events, self._events = self._events, []
        ready = [number for number, frames in self._frames.items() if frames]
        if ready:
            number = min(ready, key=lambda one: self._frames[one][0].due)
            frame = self._frames[number].popleft()
            self.engine.push_frame(number, frame.image, frame.timestamp, due=frame.due)
            while not any(isinstance(event.outcome, CaptionEvent) for event in events):
                events += self._renamed(self.engine.step())
        if self._requests and not self._numbers:
            theirs, request = self._requests.popleft()
            self._numbers[self.engine.submit(request, streamed=True)] = theirs
        if self._numbers:
            events += self._renamed(self.engine.step())
        return events

    def _renamed(self, events: list[Event]) -> list[Event]:
        renamed = [
            Event(self._numbers.get(event.sequence, event.sequence), event.outcome) for event in events
        ]
        running = self.engine._steps.running
        self._numbers = {mine: theirs for mine, theirs in self._numbers.items() if mine in running}
        return renamed

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the time to pass: nothing happens meanwhile."""
        return self.engine.wait(timeout_s)
