"""Server-sent events of a live session: numbered, so that a client resumes them where it was cut off."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

from serve.api.errors import ApiError, error_event
from serve.live.event_log import Event, EventReader
from serve.live.run import LiveRun

logger = logging.getLogger("casa.serve")
KEEP_ALIVE_S = 15.0
UNREAD_S = 60.0
"""A client that takes nothing for so long is left, seconds."""
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """A response of server-sent events; its connection is left when nothing can be sent for a while."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers=HEADERS)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events one by one."""

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        try:
            async with aclosing(self._events):
                await super().stream_response(send_soon)
        except TimeoutError:
            logger.debug("server-sent events: the client takes nothing")


def sse(event: Event) -> str:
    """An event of a session; its number is the id by which a client asks for those after it."""
    number = f"id: {event['event']}\n" if "event" in event else ""
    return f"{number}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def event_lines(
    run: LiveRun, reader: EventReader, first: Event | None = None
) -> AsyncGenerator[str, None]:
    """A session's events to its end, with comments in between that keep proxies from closing.

    Args:
        first: Sent before them.
    """
    waiting: asyncio.Future[Event] | None = None
    try:
        if first is not None:
            yield sse(first)
        while True:
            waiting = waiting or asyncio.ensure_future(anext(reader))
            done, _ = await asyncio.wait({waiting}, timeout=KEEP_ALIVE_S)
            if not done:
                yield ": keep-alive\n\n"
                continue
            event, waiting = waiting.result(), None
            yield sse(event)
    except StopAsyncIteration:
        pass
    except ApiError as error:  # another connection reads them now
        yield sse(error_event(error, fatal=True))
    finally:
        if waiting is not None:
            waiting.cancel()
        run.detach(reader)
