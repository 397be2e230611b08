"""WebSocket /v1/live: a live session's frames go to the engine, and what becomes of each comes back.

The messages are documented in `live_messages`. Captions must stay close to what is on the screen *now*, so
the engine keeps a short queue: when frames arrive faster than they are captioned, the oldest waiting frame is
dropped and named in a `dropped` event. A client that needs every frame (a file, not a camera) keeps at most
`limits.queued_frames` of them unanswered; then none is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.types import Message

from casa_core.engine.events import FrameDropped, FrameRefused, Outcome
from casa_core.engine.live_stream import StreamSettings
from casa_core.engine.requests import CaptionEvent
from casa_core.errors import CasaError, MediaError
from serve.api.engine_client import EngineClient, LiveSession
from serve.api.errors import (
    ApiError,
    as_api_error,
    bad_request,
    internal_error,
    invalid_image,
    model_not_found,
    one_line,
    too_many,
)
from serve.api.live_messages import (
    BadFrame,
    Frame,
    SessionEnd,
    SessionPrompt,
    SessionStart,
    SessionTotals,
    caption_event,
    ended_event,
    error_event,
    parse_message,
    started_event,
)
from serve.api.settings import Limits, ServeSettings

logger = logging.getLogger("casa.serve")

CLOSE_NORMAL, CLOSE_POLICY, CLOSE_INTERNAL, CLOSE_TRY_LATER = 1000, 1008, 1011, 1013


class SessionSlots:
    """Counts the open live connections of one replica, `limit` at most; used from its event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.open = 0

    def check(self) -> None:
        """Refuse a connection for which there is no slot now.

        Raises:
            ApiError: 429.
        """
        if self.open >= self._limit:
            message = f"{self.open} live sessions are open, the most this server keeps. Try again later."
            raise too_many(message, "too_many_sessions")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            ApiError: 429 if none is free.
        """
        self.check()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def live_router(client: EngineClient, settings: ServeSettings, slots: SessionSlots) -> APIRouter:
    """The live route of one engine, with at most as many connections as `slots` allows."""
    router = APIRouter()

    @router.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        connection = LiveConnection(socket, client, settings)
        try:
            slots.check()
            start = await connection.start()  # before that, a connection holds nothing
            with slots.taken():
                await connection.run(start)
        except WebSocketDisconnect:
            logger.debug("live %s: the client left", connection.id)
        except ApiError as error:
            await connection.refuse(error)
        except Exception:
            logger.exception("live %s failed", connection.id)
            await connection.refuse(internal_error(connection.id))

    return router


class LiveConnection:
    """One client: one task passes its frames to the engine, another sends what becomes of them.

    The socket is accepted already; the session that is opened on `client` belongs to this connection.
    """

    def __init__(self, socket: WebSocket, client: EngineClient, settings: ServeSettings) -> None:
        self.id = f"live-{uuid.uuid4().hex[:16]}"
        self._socket = socket
        self._client = client
        self._settings = settings
        self._limits = settings.limits
        self._arrived: dict[float, float] = {}  # of each frame that nothing has become of yet
        self._asked: deque[float] = deque()  # when each further question came that has no answer yet
        self._no_more = False
        self._received = 0
        self._text_tokens = 0
        self._last_timestamp = -1.0
        self._totals = SessionTotals()
        self._started = time.monotonic()

    async def run(self, start: SessionStart) -> None:
        """Serve the connection until the client ends it.

        Raises:
            ApiError: Fatal for this connection; the caller reports it with :meth:`refuse`.
            WebSocketDisconnect: The client left.
        """
        session = await self._open(start)
        try:
            await self._socket.send_json(started_event(self.id, self._settings.model_name, self._limits))
            await _first_failure(self._read_frames(session), self._send_outcomes(session))
            await self._socket.send_json(
                ended_event(self.id, self._totals, self._text_tokens, time.monotonic() - self._started)
            )
        finally:
            session.close()
        await self._socket.close(CLOSE_NORMAL)

    async def refuse(self, error: ApiError) -> None:
        """Report a fatal error and close, unless the client has gone already."""
        codes = {429: CLOSE_TRY_LATER, 500: CLOSE_INTERNAL}
        try:
            await self._socket.send_json(error_event(error, fatal=True))
            await self._socket.close(codes.get(error.status_code, CLOSE_POLICY))
        except (WebSocketDisconnect, RuntimeError):  # Starlette raises RuntimeError on a closed socket
            logger.debug("live %s: the client left before its error", self.id)

    async def start(self) -> SessionStart:
        """The client's first message; errors as :meth:`run`."""
        seconds = min(self._limits.start_seconds, self._limits.idle_seconds)
        message = parse_message(await self._receive(seconds), self._limits)
        if not isinstance(message, SessionStart):
            raise ApiError(
                400, "The first message of a connection must be session.start.", code="session_not_started"
            )
        if message.model is not None and message.model != self._settings.model_name:
            raise model_not_found(message.model, self._settings.model_name)
        if len(message.query) > self._limits.query_characters:
            raise _too_long(self._limits)
        ceiling = self._settings.max_tokens_per_frame
        if (message.max_tokens_per_frame or 0) > ceiling:
            raise bad_request(f"At most {ceiling} tokens per frame are accepted.", "max_tokens_per_frame")
        return message

    async def _open(self, start: SessionStart) -> LiveSession:
        settings = StreamSettings(
            query=start.query or self._settings.live_query,
            max_tokens_per_frame=start.max_tokens_per_frame or self._settings.max_tokens_per_frame,
        )
        try:
            return await self._client.open_session(settings)
        except CasaError as error:
            if (refusal := as_api_error(error)) is None:
                raise
            raise refusal from error

    async def _receive(self, seconds: float) -> Message:
        """The next message; a silent client is disconnected unless captions are still due to it."""
        waiting = asyncio.ensure_future(self._socket.receive())
        try:
            while not (await asyncio.wait({waiting}, timeout=seconds))[0]:
                if not self._due:
                    message = f"Nothing was sent for {seconds:g} seconds."
                    raise ApiError(408, message, code="session_idle")
            message = waiting.result()
        finally:
            waiting.cancel()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", CLOSE_NORMAL))
        return message

    async def _read_frames(self, session: LiveSession) -> None:
        """Pass frames on until session.end; a refused message leaves the session unchanged."""
        while not self._no_more:
            raw = await self._receive(self._limits.idle_seconds)
            try:
                match parse_message(raw, self._limits):
                    case SessionEnd():
                        self._no_more = True
                    case SessionStart():
                        raise ApiError(
                            400, "The session has started already.", code="session_already_started"
                        )
                    case SessionPrompt(query=query):
                        await self._ask(session, query)
                    case Frame() as frame:
                        await self._pass_on(session, frame)
            except _SessionOver:
                raise
            except ApiError as error:
                self._totals.refused += 1
                await self._socket.send_json(error_event(error, fatal=False))
        if not self._due:
            session.finish()

    @property
    def _due(self) -> bool:
        """Whether the client waits for anything."""
        return bool(self._arrived or self._asked)

    async def _ask(self, session: LiveSession, query: str) -> None:
        if len(query) > self._limits.query_characters:
            raise _too_long(self._limits)
        if len(self._asked) >= self._limits.queued_prompts:
            waiting = f"{len(self._asked)} questions wait for their answers, the most a session may have."
            raise too_many(waiting, "too_many_prompts")
        self._asked.append(time.monotonic())
        try:
            await session.prompt(query)
        except CasaError as error:
            self._asked.pop()
            if (refusal := as_api_error(error)) is None:
                raise
            raise refusal from error

    async def _pass_on(self, session: LiveSession, frame: Frame) -> None:
        if frame.timestamp <= self._last_timestamp:
            refusal = bad_request(
                f"Timestamps must increase: {frame.timestamp:g} came after {self._last_timestamp:g}. "
                "Open a new session to start over.",
                "timestamp",
                "timestamp_not_increasing",
            )
            raise BadFrame(refusal, frame.timestamp)
        if self._received >= self._limits.session_frames:
            message = f"A session takes at most {self._limits.session_frames} frames. Open a new one."
            raise _SessionOver(400, message, code="frame_limit")
        self._received += 1
        self._last_timestamp = frame.timestamp
        self._arrived[frame.timestamp] = time.monotonic()
        await session.push_frame(frame.image_bytes, frame.timestamp)

    async def _send_outcomes(self, session: LiveSession) -> None:
        """Send what becomes of each frame, until there are no more."""
        try:
            async for outcome in session:
                await self._send(outcome)
                if self._no_more and not self._due:
                    return
        except Exception as error:
            if (refusal := as_api_error(error)) is None:
                raise
            raise refusal from error

    async def _send(self, outcome: Outcome) -> None:
        match outcome:
            case CaptionEvent(prompt=str()) as answer:
                self._totals.tokens += len(answer.token_ids)
                self._text_tokens = answer.text_tokens
                waited = time.monotonic() - self._asked.popleft()
                await self._socket.send_json(caption_event(answer, waited))
            case CaptionEvent() as caption:
                self._totals.frames += 1
                self._totals.tokens += len(caption.token_ids)
                self._text_tokens = caption.text_tokens
                waited = time.monotonic() - self._arrived.pop(caption.timestamp)
                await self._socket.send_json(caption_event(caption, waited))
            case FrameDropped(timestamp):
                del self._arrived[timestamp]
                self._totals.dropped += 1
                dropped = {"type": "dropped", "timestamp": timestamp, "reason": "queue_full"}
                await self._socket.send_json(dropped)
            case FrameRefused(timestamp, MediaError() as error):
                del self._arrived[timestamp]
                self._totals.refused += 1
                refusal = BadFrame(invalid_image(error, "image"), timestamp)
                await self._socket.send_json(error_event(refusal, fatal=False))
            case FrameRefused(_, CasaError() as error):
                raise ApiError(400, one_line(error), code="session_full")
            case FrameRefused(_, error):
                raise error
            case _:
                raise AssertionError(f"a live stream has no {outcome}")


def _too_long(limits: Limits) -> ApiError:
    return bad_request(f"The query is longer than {limits.query_characters} characters.", "query")


class _SessionOver(ApiError):
    """An error about a message that ends the session."""


async def _first_failure(*coroutines: Any) -> None:
    """Run all to their end; if one raises, cancel the others and raise its exception."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
