"""WebSocket /v1/live: a connection feeds a live session, and sends its events.

The messages are documented in `messages`. A session outlives a connection that is lost: the client resumes it
by its id on another one. Closing with code 1000 ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.types import Message

from casa_core.errors import CasaError
from serve.api.errors import ApiError, as_api_error, error_event, internal_error
from serve.live.event_log import EventReader
from serve.live.messages import (
    Frame,
    SessionEnd,
    SessionPrompt,
    SessionResume,
    SessionStart,
    SessionUsage,
    parse_message,
)
from serve.live.run import LiveRun
from serve.live.sessions import LiveSessions, Owner

logger = logging.getLogger("casa.serve")

CLOSE_NORMAL, CLOSE_POLICY, CLOSE_INTERNAL = 1000, 1008, 1011
CLOSE_RESTART, CLOSE_TRY_LATER = 1012, 1013
SHORTLY_S = 1.0
"""How long a client that is refused may take: to resume a session instead, or to read why."""


def live_router(sessions: LiveSessions) -> APIRouter:
    """The live route over a replica's sessions."""
    router = APIRouter()

    @router.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        connection = LiveConnection(socket, sessions)
        try:
            await connection.serve()
        except WebSocketDisconnect:
            logger.debug("live %s: the client left", connection.id)
        except Exception as error:
            if (refusal := as_api_error(error)) is None:
                logger.exception("live %s failed", connection.id)
                refusal = internal_error(connection.id)
            await connection.refuse(refusal)

    return router


class LiveConnection:
    """One client: one task passes its messages to a session, another sends the session's events.

    The socket is accepted already.

    Attributes:
        id: The session's, once it has one.
    """

    def __init__(self, socket: WebSocket, sessions: LiveSessions) -> None:
        self.id = "connection"
        self._socket = socket
        self._sessions = sessions
        self._limits = sessions.settings.limits

    async def serve(self) -> None:
        """Serve the connection until the session ends, or it is lost.

        Raises:
            ApiError: Fatal for this connection; the caller reports it with :meth:`refuse`.
            WebSocketDisconnect: The client left.
        """
        run, reader = await self._begin()
        self.id = run.id
        try:
            await _first_of(self._take_messages(run), self._send_events(reader), reader.until_cut())
        except WebSocketDisconnect as left:
            if left.code == CLOSE_NORMAL:
                run.close()
            raise
        finally:
            run.detach(reader)
        await self._close(run.failure)

    async def refuse(self, error: ApiError) -> None:
        """Report a fatal error and close, unless the client has gone already or reads nothing."""
        try:
            async with asyncio.timeout(SHORTLY_S):
                await self._socket.send_json(error_event(error, fatal=True))
                await self._close(error)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            # Starlette raises RuntimeError on a closed socket.
            logger.debug("live %s: the client left before its error", self.id)

    async def _begin(self) -> tuple[LiveRun, EventReader]:
        """Open or resume a session as the first message says; until then, a connection holds nothing."""
        match parse_message(await self._first_message(), self._limits):
            case SessionStart() as start:
                run = await self._sessions.start(start, Owner.of(self._socket.state))
                return run, run.attach()
            case SessionResume(session_id=session_id, after=after):
                run = await self._sessions.find(session_id, to_read=True)
                resumed = run.resumed_event(after)
                reader = run.attach(after)
                await self._socket.send_json(resumed)
                return run, reader
            case _:
                message = "The first message of a connection must be session.start or session.resume."
                raise ApiError(400, message, code="session_not_started")

    async def _first_message(self) -> Message:
        """A server without a place waits only shortly: for a session that is resumed, which has one."""
        seconds = min(self._limits.start_seconds, self._limits.idle_seconds)
        full = self._sessions.full
        if full:
            seconds = min(seconds, SHORTLY_S)
        try:
            return await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            if full:
                self._sessions.check()
            raise ApiError(408, f"Nothing was sent for {seconds:g} seconds.", code="session_idle") from None

    async def _receive(self) -> Message:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", CLOSE_NORMAL))
        return message

    async def _take_messages(self, run: LiveRun) -> None:
        """Pass messages on until the client leaves; a refused one leaves the session unchanged."""
        while True:
            raw = await self._receive()
            try:
                await self._pass_on(run, raw)
            except (ApiError, CasaError) as error:
                if (refusal := as_api_error(error)) is None:
                    raise
                run.refuse(refusal)

    async def _pass_on(self, run: LiveRun, raw: Message) -> None:
        match parse_message(raw, self._limits):
            case SessionEnd():
                run.finish()
            case SessionUsage():
                run.report_usage()
            case SessionPrompt(query=query):
                await run.ask(query)
            case Frame(timestamp, image):
                await run.push(image, timestamp)
            case _:
                raise ApiError(400, "The session has started already.", code="session_already_started")

    async def _send_events(self, reader: EventReader) -> None:
        async for event in reader:
            await self._socket.send_json(event)

    async def _close(self, error: ApiError | None) -> None:
        if error is None:
            await self._socket.close(CLOSE_NORMAL)
        else:
            codes = {429: CLOSE_TRY_LATER, 500: CLOSE_INTERNAL, 503: CLOSE_RESTART}
            await self._socket.close(codes.get(error.status_code, CLOSE_POLICY), error.code)


async def _first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until one returns or raises, cancel the others, and raise its exception."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
