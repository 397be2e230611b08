"""One live session apart from what carries it: WebSockets, REST calls and uploads feed the same run.

Captions must stay close to what is on the screen *now*, so the engine keeps a short queue: when frames arrive
faster than they are captioned, the oldest waiting frame is dropped and named in a `dropped` event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from casa_core.engine.requests import StreamSettings
from casa_core.errors import CasaError
from serve.api.errors import SERVER_ERROR, ApiError, as_api_error, bad_request, error_event, internal_error
from serve.api.settings import ServeSettings
from serve.calls import OpenStream
from serve.live.account import Account
from serve.live.event_log import Event, EventLog, EventReader
from serve.live.messages import session_facts, usage_of
from serve.live.state import Kept, RunState

logger = logging.getLogger("casa.serve")


class LiveRun:
    """A session: takes frames and questions, and logs what becomes of each as numbered events.

    It ends by itself when its client has ended it, when it fails, and when nothing was sent for
    `idle_seconds`, or for `resume_seconds` where no connection reads its events.

    Args:
        session: The engine's stream; it belongs to the run.
        on_change: Called after each event, frame and question.
        on_over: Called once, when the session has ended.

    Attributes:
        over: Whether it has ended.
        has_moved: Whether it has ended here only, and goes on in another process.
        failure: The error that ended it.
        left_at: When its connection was lost, by `time.monotonic`; `None` unless one was.
    """

    def __init__(
        self,
        session_id: str,
        session: OpenStream,
        stream: StreamSettings,
        settings: ServeSettings,
        *,
        on_change: Callable[[LiveRun], None] = lambda run: None,
        on_over: Callable[[LiveRun], None] = lambda run: None,
    ) -> None:
        self.id, self.stream = session_id, stream
        self.owner = ""
        self.over = self.has_moved = False
        self.failure: ApiError | None = None
        self.left_at: float | None = None
        self.facts = session_facts(session_id, stream.model or settings.model_name, settings.limits)
        self._limits = settings.limits
        self._session = session
        self._on_change, self._on_over = on_change, on_over
        self._account = Account()
        self._log = EventLog(self._limits.kept_events)
        self._known: int | None = None  # latest event that the process before had told of, until it is read
        self._changed = asyncio.Event()
        self._began = self._touched = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin a new session: its first event says so."""
        self._note({"type": "session.started", **self.facts, "credits": self.credits})
        self._follow()

    def resume(self, state: RunState) -> None:
        """Continue a session of another process, as one whose connection was lost."""
        self.owner = state.owner
        self._account = state.account.continued()
        self._log = EventLog(self._limits.kept_events, state.event, state.events)
        self._known = state.event
        self.left_at = time.monotonic()
        self._began = self.left_at - state.seconds
        self._follow()
        self._on_change(self)

    def state(self) -> RunState:
        """What another process needs to continue it, small enough to keep after every frame."""
        return RunState(
            session_id=self.id,
            stream=self.stream,
            account=self._account.copy(),
            seconds=time.monotonic() - self._began,
            event=self._log.number,
            events=self._log.events,
            owner=self.owner,
        )

    def kept(self) -> Kept | None:
        """It for another process, as far as it can be kept at this moment; ``None`` where it cannot."""
        stream = None if self.over else self._session.state()
        return None if stream is None else Kept(self.state(), stream, self._session.place)

    async def leave(self, *, taken_over: bool = False) -> Kept | None:
        """End it here, so that another process continues it; ``None`` where it has ended.

        Args:
            taken_over: Whether another connection reads it there. Else its reader is told to resume it.
        """
        stream = await self._session.leave()
        if self.over:
            return None
        kept = Kept(self.state(), stream)
        self.has_moved = True
        error = _taken_over() if taken_over else _moves()
        if (reader := self._log.reader) is not None:
            reader.cut(error)
        self.fail(error)
        return kept

    @property
    def credits(self) -> int:
        """Frames that may be sent now without one being dropped."""
        return self._account.credits(self._limits)

    @property
    def event(self) -> int:
        """Number of the latest event."""
        return self._log.number

    @property
    def is_read(self) -> bool:
        """Whether a connection reads its events."""
        return self._log.reader is not None

    @property
    def usage(self) -> dict[str, Any]:
        """The counts so far."""
        return usage_of(self._account.totals, time.monotonic() - self._began)

    async def push(self, image: bytes, timestamp: float) -> None:
        """Take a frame.

        Raises:
            BadFrame: Its time does not increase; the session is as before.
            ApiError: The session has ended, or takes no more frames and ends now.
        """
        self._take()
        most = self._limits.session_frames
        if self._account.totals.received >= most:
            message = f"A session takes at most {most} frames. Open a new one."
            raise self.fail(ApiError(400, message, code="frame_limit"))
        self._account.take_frame(timestamp)
        self._on_change(self)
        try:
            await self._session.push_frame(image, timestamp)
        except CasaError as error:
            raise self.fail(as_api_error(error) or internal_error(self.id)) from error

    async def ask(self, query: str) -> None:
        """Take a further question, about the latest frame.

        Raises:
            ApiError: It is too long, too many wait, or the session has ended.
        """
        self._take()
        self._account.take_question(query, self._limits)
        self._on_change(self)
        try:
            await self._session.prompt(query)
        except CasaError:
            self._account.asked.pop()
            raise

    def refuse(self, error: ApiError) -> None:
        """Count a refused message, and log why."""
        self._account.totals.refused += 1
        self._note(error_event(error, fatal=False))

    def warn(self, code: str, message: str) -> None:
        """Log something that the client should know and that ends nothing."""
        self._note({"type": "warning", "warning": {"code": code, "message": message}})

    def report_usage(self) -> None:
        """Log the counts so far."""
        self.touch()
        self._note({"type": "session.usage", **self.usage, "credits": self.credits})

    def finish(self) -> None:
        """Take nothing more, and end after what is due."""
        self.touch()
        self._account.ending = True
        if not self._account.due:
            self._session.finish()

    def touch(self) -> None:
        """Note that the client sent something.

        Raises:
            ApiError: The session has ended.
        """
        if self.over:
            raise self.failure or _ended()
        self._touched = time.monotonic()
        self.left_at = None

    def attach(self, after: int = 0) -> EventReader:
        """Read the events after a number; a connection that reads them now is cut off.

        Raises:
            ApiError: There is no event of that number yet.
        """
        if self._known is not None and self._known < after <= self._known + self._limits.kept_events:
            self._log.renumber(self._known, after)  # the client has events that were not kept
        self._known = None
        if after > self._log.number:
            message = f"The session's latest event is number {self._log.number}, not {after}."
            raise bad_request(message, "after")
        reader = self._log.attach(after, _taken_over())
        self.left_at, self._touched = None, time.monotonic()
        self._arm()
        return reader

    def resumed_event(self, after: int) -> Event:
        """What a reader that comes back is told first."""
        lost, received = self._log.lost(after), self._account.totals.received
        resumed = {"type": "session.resumed", **self.facts, "lost": lost, "received": received}
        return {**resumed, "credits": self.credits, "event": after}

    def detach(self, reader: EventReader) -> None:
        """Note that a reader was lost; the session waits `resume_seconds` for another."""
        if self._log.reader is reader:
            self._log.reader = None
            self.left_at = self._touched = time.monotonic()
            self._arm()

    async def until_room(self) -> None:
        """Wait until a frame may be sent that is not dropped, or the session has ended."""
        while not (self.over or self.credits):
            await self._change()

    async def until_over(self) -> None:
        """Wait until the session has ended."""
        while not self.over:
            await self._change()

    def fail(self, error: ApiError) -> ApiError:
        """End the session by an error, which is returned."""
        if not self.over:
            self.failure = error
            self._end(error_event(error, fatal=True))
        return error

    def close(self) -> None:
        """End the session at once; ending it twice is harmless."""
        if not self.over:
            self._end({"type": "session.ended", "session_id": self.id, **self.usage})

    def _end(self, last: Event) -> None:
        self.over = True
        self._log.append(last)
        self._log.end()
        self._session.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._outcomes is not asyncio.current_task():
            self._outcomes.cancel()
        self._changed.set()
        self._on_over(self)

    def _take(self) -> None:
        self.touch()
        if self._account.ending:
            raise _ended()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _follow(self) -> None:
        self._outcomes = asyncio.create_task(self._note_outcomes())
        self._arm()

    def _arm(self) -> None:
        """End the session if its client has been silent for too long, or look again when it will be."""
        if self._timer is not None:
            self._timer.cancel()
        if self.over:
            return
        now = time.monotonic()
        seconds = self._limits.idle_seconds if self.is_read else self._limits.resume_seconds
        left = self._touched + seconds - now
        if left <= 0 and self.is_read and self._account.due:
            left = seconds  # the client waits for the server, not the other way around
        if left <= 0:
            self.fail(ApiError(408, f"Nothing was sent for {seconds:g} seconds.", code="session_idle"))
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._arm)

    async def _note_outcomes(self) -> None:
        try:
            async for outcome in self._session:
                for event in self._account.note(outcome, self._limits):
                    self._note(event)
                self._changed.set()
                if self.over or (self._account.ending and not self._account.due):
                    break
            self.close()
        except Exception as error:
            refusal = as_api_error(error)
            if refusal is None:
                logger.exception("live %s failed", self.id)
                refusal = internal_error(self.id)
            self.fail(refusal)

    def _note(self, event: Event) -> None:
        if self.over:
            return
        self._log.append(event)
        self._on_change(self)
        if self._log.overrun and self._log.reader is not None:
            message = f"{self._limits.kept_events} events were not read. Read them as they come."
            self._log.reader.cut(self.fail(ApiError(408, message, code="events_unread")))


def _taken_over() -> ApiError:
    return ApiError(409, "Another connection continues this session.", code="session_taken_over")


def _moves() -> ApiError:
    message = "The session goes on in another process: resume it."
    return ApiError(503, message, code="session_moves", kind=SERVER_ERROR)


def _ended() -> ApiError:
    return ApiError(409, "The session has ended. Open a new one.", code="session_ended")
