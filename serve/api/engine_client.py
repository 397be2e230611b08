"""One thread steps the engine's loop, and hands what happens to the coroutines that wait for it.

Requests come in from the event loop: each is a call that the thread makes between two steps, so the engine
needs no locks. A step advances everything that runs, so plain answers, streamed ones and live sessions share
its forwards (:class:`casa_core.engine.loop.EngineLoop`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from casa_core.engine.events import Failed, Outcome
from casa_core.engine.live_stream import StreamSettings
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage, LoopProtocol
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult

logger = logging.getLogger("casa.serve")
T = TypeVar("T")

MOST_PUSHED = 64
"""Frames of a session that the engine may not have seen yet."""


class EngineClient:
    """Runs one engine's loop on a thread.

    Args:
        engine: From now on used by the thread only.
    """

    def __init__(self, engine: LoopProtocol) -> None:
        self._engine = engine
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._inboxes: dict[int, _Inbox] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="casa-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer a request. Cancelling the coroutine ends the generation.

        Raises:
            Overloaded: As many requests wait as may wait.
            Exception: Whatever the engine says is wrong with the request.
        """
        async with aclosing(self._outcomes(lambda: self._engine.submit(request))) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, GenerationResult):
                    return outcome
        raise RuntimeError("The engine was stopped.")

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Yield an answer's pieces as they are generated; errors as :meth:`generate`. Closing the iterator
        early ends the generation."""
        submit = lambda: self._engine.submit(request, streamed=True)  # noqa: E731
        async with aclosing(self._outcomes(submit)) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, GenerationResult):
                    return
                assert isinstance(outcome, GenerationDelta)
                yield outcome

    async def open_session(self, settings: StreamSettings) -> LiveSession:
        """Open a live stream.

        Raises:
            Overloaded: The engine has no slot or no time for another.
        """
        number, inbox = await self._join(lambda: self._engine.open_stream(settings))
        return LiveSession(self, number, inbox)

    async def ping(self) -> None:
        """Return once the thread has made a new call.

        Raises:
            RuntimeError: The client was closed, or the thread has died.
        """
        await self.call(lambda: None)

    async def load(self) -> LoadSnapshot:
        """What the engine holds now; errors as :meth:`ping`."""
        return await self.call(self._engine.current_load)

    def close(self) -> None:
        """Stop the thread after the step in progress; what still runs ends."""
        self._closed = True
        self._engine.wake()

    async def call(self, function: Callable[[], T]) -> T:
        """Call the engine on its thread, between two steps."""
        return await asyncio.wrap_future(self.post(function))

    def post(self, function: Callable[[], T]) -> Future[T]:
        """The same without waiting: it is made even if the coroutine that asks for it is being cancelled."""
        done: Future[T] = Future()
        if self._closed or not self._thread.is_alive():
            raise RuntimeError("The engine was stopped.")
        self._calls.append((function, done))
        self._engine.wake()
        return done

    def leave(self, number: int) -> None:
        """End an answer or a stream, if it has not ended."""

        def cancel() -> None:
            self._inboxes.pop(number, None)
            self._engine.cancel(number)

        if not self._closed:
            self.post(cancel)

    async def _join(self, start: Callable[[], int]) -> tuple[int, _Inbox]:
        """Start an answer or a stream; its outcomes go to the inbox from its first one on."""
        inbox = _Inbox(asyncio.get_running_loop())

        def join() -> int:
            number = start()
            self._inboxes[number] = inbox
            return number

        joined = self.post(join)
        try:
            return await asyncio.wrap_future(joined), inbox
        except asyncio.CancelledError:
            joined.add_done_callback(lambda done: None if done.exception() else self.leave(done.result()))
            raise

    async def _outcomes(self, start: Callable[[], int]) -> AsyncGenerator[Outcome, None]:
        number, inbox = await self._join(start)
        try:
            async for outcome in inbox:
                yield outcome
        finally:
            self.leave(number)

    def _work(self) -> None:
        engine = self._engine
        try:
            while not self._closed:
                engine.wait(until=lambda: bool(self._calls) or self._closed)
                while self._calls:
                    _make(*self._calls.popleft())
                for event in engine.step():
                    if (inbox := self._inboxes.get(event.sequence)) is not None:
                        inbox.put(event.outcome)
        except Exception:
            logger.exception("the engine's loop has failed")
            raise
        finally:
            self._closed = True
            for inbox in self._inboxes.values():
                inbox.put(Failed(RuntimeError("The engine was stopped.")))
            while self._calls:
                self._calls.popleft()[1].cancel()
            engine.close()


class LiveSession:
    """One live stream of an :class:`EngineClient`.

    Iterating gives its outcomes: captions in the order of their frames, frames dropped or refused.
    """

    def __init__(self, client: EngineClient, number: int, inbox: _Inbox) -> None:
        self._client, self._number, self._inbox = client, number, inbox
        self._pushed: deque[Future[None]] = deque()

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """Queue a frame; what becomes of it is an outcome.

        It is not waited for, so that frames which come too fast are dropped by the engine and not kept back
        in the connection; a flood of them is.

        Raises:
            DataError: If the stream has ended.
        """
        engine = self._client._engine
        self._pushed.append(self._client.post(lambda: engine.push_frame(self._number, image, timestamp)))
        while self._pushed and (self._pushed[0].done() or len(self._pushed) > MOST_PUSHED):
            await asyncio.wrap_future(self._pushed.popleft())

    async def prompt(self, query: str) -> None:
        """Ask something further; the answer is an outcome.

        Raises:
            DataError: If it is too long, or the stream has ended.
        """
        await self._client.call(lambda: self._client._engine.prompt(self._number, query))

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self._inbox

    def finish(self) -> None:
        """Let the iteration end after the outcomes that are there."""
        self._inbox.put(None)

    def close(self) -> None:
        """Free the stream's slot; closing twice is harmless."""
        self._client.leave(self._number)


class _Inbox:
    """The outcomes of one answer or stream, from the engine's thread to an event loop.

    Iterating raises the error that ended it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Outcome | None] = asyncio.Queue()

    def put(self, outcome: Outcome | None) -> None:
        """From any thread; ``None`` ends the iteration. An event loop that has ended has no use for it."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, outcome)
        except RuntimeError:
            logger.debug("an outcome came after its event loop had ended")

    def __aiter__(self) -> _Inbox:
        return self

    async def __anext__(self) -> Outcome:
        outcome = await self._queue.get()
        if outcome is None:
            raise StopAsyncIteration
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome


def _make(function: Callable[[], Any], done: Future[Any]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(function())
    except Exception as error:  # handed to the caller that waits for it
        done.set_exception(error)
