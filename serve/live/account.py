"""What a live session has taken and what has become of it, as the events that its client gets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from casa_core.engine.events import FrameDropped, FrameRefused, Outcome, StreamMoved
from casa_core.engine.requests import CaptionEvent
from casa_core.errors import CasaError, MediaError
from serve.api.errors import ApiError, bad_request, error_event, invalid_image, one_line, too_many
from serve.api.settings import Limits
from serve.live.event_log import Event
from serve.live.messages import BadFrame, SessionTotals, caption_event, dropped_event


@dataclass(slots=True)
class Account:
    """The frames and questions of one session. It can be pickled.

    Attributes:
        waiting: When each frame came that nothing has become of yet, by its time in the stream.
        asked: When each further question came that has no answer yet.
        ending: The client sends nothing more.
    """

    totals: SessionTotals = field(default_factory=SessionTotals)
    last_timestamp: float = -1.0
    waiting: dict[float, float] = field(default_factory=dict)
    asked: deque[float] = field(default_factory=deque)
    ending: bool = False

    @property
    def due(self) -> bool:
        """Whether the client waits for anything."""
        return bool(self.waiting or self.asked)

    def copy(self) -> Account:
        """One that does not change with it."""
        return replace(self, totals=replace(self.totals), waiting=dict(self.waiting), asked=self.asked.copy())

    def continued(self) -> Account:
        """It in another process, where what waits has just come: clocks differ."""
        now = time.monotonic()
        asked = deque([now] * len(self.asked))
        return replace(self.copy(), waiting=dict.fromkeys(self.waiting, now), asked=asked)

    def credits(self, limits: Limits) -> int:
        """Frames that may be sent now without one being dropped."""
        return max(0, limits.queued_frames - len(self.waiting))

    def take_frame(self, timestamp: float) -> None:
        """Note a frame.

        Raises:
            BadFrame: Its time does not increase; nothing was noted.
        """
        if timestamp <= self.last_timestamp:
            message = (
                f"Timestamps must increase: {timestamp:g} came after {self.last_timestamp:g}. "
                "Open a new session to start over."
            )
            raise BadFrame(bad_request(message, "timestamp", "timestamp_not_increasing"), timestamp)
        self.totals.received += 1
        self.last_timestamp = timestamp
        self.waiting[timestamp] = time.monotonic()

    def take_question(self, query: str, limits: Limits) -> None:
        """Note a further question.

        Raises:
            ApiError: It is too long, or too many wait; nothing was noted.
        """
        check_query(query, limits)
        if len(self.asked) >= limits.queued_prompts:
            waiting = f"{len(self.asked)} questions wait for their answers, the most a session may have."
            raise too_many(waiting, "too_many_prompts")
        self.asked.append(time.monotonic())

    def note(self, outcome: Outcome, limits: Limits) -> Iterator[Event]:
        """What a client is told about an outcome.

        Raises:
            ApiError: It ends the session.
            Exception: The engine's own failure.
        """
        match outcome:
            case CaptionEvent() as caption:
                self.totals.count(caption)
                came = self.asked.popleft() if caption.prompt is not None else self._settle(caption.timestamp)
                yield self._credited(caption_event(caption, time.monotonic() - came), limits)
            case FrameDropped(timestamp):
                yield self._dropped(timestamp, "queue_full", limits)
            case FrameRefused(timestamp, MediaError() as error):
                yield self._refused(invalid_image(error, "image"), timestamp, limits)
            case FrameRefused(_, CasaError() as error):
                raise ApiError(400, one_line(error), code="session_full")
            case FrameRefused(timestamp, ValueError()):
                message = "The image's shape or format is not one that the model takes. Send another."
                yield self._refused(bad_request(message, "image", "invalid_image"), timestamp, limits)
            case FrameRefused(_, error):
                raise error
            case StreamMoved(exact, frames_lost):
                yield {"type": "session.moved", "exact": exact}
                for timestamp in frames_lost:
                    yield self._dropped(timestamp, "moved", limits)
            case _:
                raise AssertionError(f"a live stream has no {outcome}")

    def _refused(self, error: ApiError, timestamp: float, limits: Limits) -> Event:
        self._settle(timestamp)
        self.totals.refused += 1
        return self._credited(error_event(BadFrame(error, timestamp), fatal=False), limits)

    def _dropped(self, timestamp: float, reason: str, limits: Limits) -> Event:
        self._settle(timestamp)
        self.totals.dropped += 1
        return self._credited(dropped_event(timestamp, reason), limits)

    def _settle(self, timestamp: float) -> float:
        return self.waiting.pop(timestamp)

    def _credited(self, event: Event, limits: Limits) -> Event:
        return {**event, "credits": self.credits(limits)}


def check_query(query: str, limits: Limits) -> None:
    """Refuse a query that is too long.

    Raises:
        ApiError: 400.
    """
    if len(query) > limits.query_characters:
        raise bad_request(f"The query is longer than {limits.query_characters} characters.", "query")
