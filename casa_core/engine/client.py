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
from typing import Any, TypeAlias, TypeVar

from casa_core.engine.events import Failed, Outcome
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage, LoopProtocol
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    StreamSettings,
)
from casa_core.engine.saved_session import SavedSession, Transcript

logger = logging.getLogger("casa.serve")
T = TypeVar("T")
Item: TypeAlias = Outcome | Transcript | SavedSession
"""What a live stream gives: its outcomes, a transcript after each caption where they are kept, and the
snapshot with which it departs."""

MOST_PUSHED = 64
"""Frames of a session that the engine may not have seen yet."""


class EngineClient:
    """Runs one engine's loop on a thread; it has the calls of ``serve.calls.EngineCalls``.

    Args:
        engine: From now on used by the thread only.
    """

    def __init__(self, engine: LoopProtocol) -> None:
        self._engine = engine
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._inboxes: dict[int, _Inbox] = {}
        self._joining, self._open = 0, set[int]()  # answers and streams, as the event loop sees them
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="casa-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As ``EngineCalls.generate``."""
        number, inbox = await self._join(lambda: self._engine.submit(request))
        try:
            result = await anext(inbox)
        finally:
            self.leave(number)
        assert isinstance(result, GenerationResult), "an answer that is not streamed has nothing else"
        return result

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """As ``EngineCalls.stream``."""
        async with aclosing(self.stream_batches(request)) as batches:
            async for batch in batches:
                for delta in batch:
                    yield delta

    async def stream_batches(self, request: GenerationRequest) -> AsyncGenerator[list[GenerationDelta], None]:
        """The same, as many pieces together as there are."""
        number, inbox = await self._join(lambda: self._engine.submit(request, streamed=True))
        try:
            async for batch in inbox.batches():
                if deltas := [one for one in batch if isinstance(one, GenerationDelta)]:
                    yield deltas
                if isinstance(last := batch[-1], Failed):
                    raise last.error
                if isinstance(last, GenerationResult):
                    return
        finally:
            self.leave(number)

    async def open_session(
        self,
        settings: StreamSettings,
        begin: SavedSession | Transcript | None = None,
        *,
        transcripts: bool = False,
    ) -> LiveSession:
        """Open a live stream.

        Args:
            settings: Where it begins with something, its deadline counts only.
            begin: What it continues from: exactly from a snapshot, approximately from a transcript.
            transcripts: Whether a transcript follows each caption, for another engine to continue from.

        Raises:
            Overloaded: The engine has no slot or no time for another.
            StoreError: Another model or template made the snapshot.
        """

        def start() -> int:
            engine = self._engine
            match begin:
                case None:
                    return engine.open_stream(settings)
                case SavedSession():
                    return engine.restore(begin, settings)
                case Transcript():
                    return engine.replay(begin, settings)

        number, inbox = await self._join(start, transcripts=transcripts)
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

    @property
    def idle(self) -> bool:
        """Whether it has neither an answer nor a stream."""
        return not (self._joining or self._open)

    def check_alive(self) -> None:
        """Raises:
        RuntimeError: The client was closed, or the thread has died.
        """
        if self._closed or not self._thread.is_alive():
            raise RuntimeError("The engine was stopped.")

    def close(self) -> None:
        """Stop the thread after the step in progress; what still runs ends."""
        self._closed = True
        self._engine.wake()

    async def ended(self) -> None:
        """Close it, and return once nothing in here refers to the engine, whose memory is free then."""
        await self.call(self.close)  # after the calls that have been asked for
        await asyncio.to_thread(self._thread.join)
        del self._engine

    async def call(self, function: Callable[[], T]) -> T:
        """Call the engine on its thread, between two steps."""
        return await asyncio.wrap_future(self.post(function))

    def post(self, function: Callable[[], T]) -> Future[T]:
        """The same without waiting: it is made even if the coroutine that asks for it is being cancelled."""
        done: Future[T] = Future()
        self.check_alive()
        self._calls.append((function, done))
        self._engine.wake()
        return done

    def leave(self, number: int) -> None:
        """End an answer or a stream, if it has not ended."""

        def cancel() -> None:
            self._inboxes.pop(number, None)
            self._engine.cancel(number)

        self._open.discard(number)
        if not self._closed:
            self.post(cancel)

    async def _join(self, start: Callable[[], int], *, transcripts: bool = False) -> tuple[int, _Inbox]:
        """Start an answer or a stream; its outcomes go to the inbox from its first one on."""
        inbox = _Inbox(asyncio.get_running_loop(), transcripts)

        def join() -> int:
            number = start()
            self._inboxes[number] = inbox
            return number

        joined = self.post(join)
        self._joining += 1
        try:
            number = await asyncio.wrap_future(joined)
            self._open.add(number)
            return number, inbox
        except asyncio.CancelledError:
            joined.add_done_callback(lambda done: None if done.exception() else self.leave(done.result()))
            raise
        finally:
            self._joining -= 1

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
                        if inbox.transcripts and isinstance(event.outcome, CaptionEvent):
                            inbox.put(engine.transcript(event.sequence))
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
    """One live stream of an :class:`EngineClient`: it has the calls of ``serve.calls.OpenStream``."""

    def __init__(self, client: EngineClient, number: int, inbox: _Inbox) -> None:
        self._client, self._number, self._inbox = client, number, inbox
        self._pushed: deque[Future[None]] = deque()

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """As ``OpenStream.push_frame``.

        Raises:
            DataError: If the stream has ended.
        """
        client = self._client
        self._pushed.append(client.post(lambda: client._engine.push_frame(self._number, image, timestamp)))
        while self._pushed and (self._pushed[0].done() or len(self._pushed) > MOST_PUSHED):
            await asyncio.wrap_future(self._pushed.popleft())

    async def prompt(self, query: str) -> None:
        """As ``OpenStream.prompt``."""
        await self._client.call(lambda: self._client._engine.prompt(self._number, query))

    async def depart(self) -> None:
        """End the stream here: its iteration ends with the snapshot that another engine continues from.

        Raises:
            DataError: If the stream has ended.
        """

        def depart() -> None:
            saved, outcomes = self._client._engine.depart(self._number)
            for outcome in (*outcomes, saved, None):
                self._inbox.put(outcome)

        await self._client.call(depart)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._inbox

    def batches(self) -> AsyncIterator[list[Item]]:
        """The same, as many together as there are; an error comes as :class:`Failed`."""
        return self._inbox.batches()

    def finish(self) -> None:
        """As ``OpenStream.finish``."""
        self._inbox.put(None)

    @property
    def place(self) -> None:
        """As ``OpenStream.place``."""
        return None

    def state(self) -> Transcript | None:
        """As ``OpenStream.state``: the engine is in this process, and ends with it."""
        return None

    async def leave(self) -> SavedSession | Transcript | None:
        """As ``OpenStream.leave``, with nothing."""
        return None

    def close(self) -> None:
        """As ``OpenStream.close``."""
        self._client.leave(self._number)


class _Inbox:
    """The outcomes of one answer or stream, from the engine's thread to an event loop.

    Iterating raises the error that ended it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transcripts: bool = False) -> None:
        self._loop = loop
        self.transcripts = transcripts
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue()

    def put(self, outcome: Item | None) -> None:
        """From any thread; ``None`` ends the iteration. An event loop that has ended has no use for it."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, outcome)
        except RuntimeError:
            logger.debug("an outcome came after its event loop had ended")

    def __aiter__(self) -> _Inbox:
        return self

    async def batches(self) -> AsyncIterator[list[Item]]:
        """As many together as there are, up to the end or an error, which comes as :class:`Failed`."""
        ended = False
        while not ended:
            found = [await self._queue.get()]
            while not self._queue.empty():
                found.append(self._queue.get_nowait())
            ended = found[-1] is None or isinstance(found[-1], Failed)
            if batch := [item for item in found if item is not None]:
                yield batch

    async def __anext__(self) -> Item:
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
