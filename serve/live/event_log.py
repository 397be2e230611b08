"""The events of one live session, numbered, and kept for readers that come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from serve.api.errors import ApiError

Event = dict[str, Any]


class EventLog:
    """The latest events of a session, for one reader at a time.

    Args:
        kept: How many are kept.
        number: The latest event's.
        events: The latest ones, where the session began elsewhere.
    """

    def __init__(self, kept: int, number: int = 0, events: Iterable[Event] = ()) -> None:
        self.number = number
        self.ended = False
        self.reader: EventReader | None = None
        self._events = deque(events, maxlen=kept)
        self._kept = kept

    @property
    def events(self) -> tuple[Event, ...]:
        """Those that are kept, oldest first."""
        return tuple(self._events)

    @property
    def overrun(self) -> bool:
        """Whether the reader has missed events, as it reads more slowly than they come."""
        return self.reader is not None and self.number - self.reader.position > self._kept

    def append(self, event: Event) -> None:
        """Number an event and keep it."""
        self.number += 1
        self._events.append({**event, "event": self.number})
        self._wake()

    def renumber(self, known: int, after: int) -> None:
        """Let the events after number ``known`` follow number ``after``; those before are forgotten."""
        new = [event for event in self._events if event["event"] > known]
        self._events.clear()
        self.number = after
        for event in new:
            self.append(event)

    def end(self) -> None:
        """Let readers end after the events that are there."""
        self.ended = True
        self._wake()

    def lost(self, after: int) -> int:
        """How many events after a number are no longer kept."""
        return max(0, self.number - after - len(self._events))

    def next(self, after: int) -> Event | None:
        """The first event after a number that is kept, if it has come."""
        if self.number <= after:
            return None
        return self._events[max(0, after - self.number + len(self._events))]

    def attach(self, after: int, taken_over: ApiError) -> EventReader:
        """A reader of the events after a number; the one before it ends with an error."""
        if self.reader is not None:
            self.reader.cut(taken_over)
        self.reader = EventReader(self, after)
        return self.reader

    def _wake(self) -> None:
        if self.reader is not None:
            self.reader.wake()


class EventReader:
    """Iterates over a session's events until it ends.

    Attributes:
        position: Number of the latest event that was read.
    """

    def __init__(self, log: EventLog, after: int) -> None:
        self.position = after
        self._log = log
        self._ready = asyncio.Event()
        self._cut: ApiError | None = None
        self._was_cut = asyncio.Event()

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._cut is not None:
                raise self._cut
            if (event := self._log.next(self.position)) is not None:
                self.position = event["event"]
                return event
            if self._log.ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()

    def cut(self, error: ApiError) -> None:
        """End the iteration with an error, and :meth:`until_cut`."""
        self._cut = error
        self._was_cut.set()
        self.wake()

    def wake(self) -> None:
        """Look again whether there is an event."""
        self._ready.set()

    async def until_cut(self) -> None:
        """Raise the error of :meth:`cut` once it is called, even if what was read cannot be passed on."""
        await self._was_cut.wait()
        assert self._cut is not None
        raise self._cut
