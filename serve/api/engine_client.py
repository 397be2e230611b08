"""Blocking engine calls on one worker thread, awaited from the event loop, with micro-batching of requests.

One worker thread per replica makes every engine call, so the engine needs no locks. Calls are served in order
of arrival and are small: a batch of plain requests, *one* token of a streamed answer, one frame of a live
session. Streams, captions and batches therefore take turns, and a stream whose reader is slow or gone costs
nothing: its next token is generated only when it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from casa_core.engine.protocol import EngineProtocol, StreamProtocol
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult

logger = logging.getLogger("casa.serve")
T = TypeVar("T")


class Overloaded(Exception):
    """More requests wait for the engine than the replica accepts."""


class MicroBatcher:
    """Collects requests that arrive together into one engine call.

    While one batch runs, later requests queue up and form the next one, so the wait matters only when idle.

    Args:
        run: Answers a list of requests in order.
        size: Most requests in one call.
        wait_s: How long the first request of an idle batcher waits for others, seconds.
        waiting_limit: Requests that may wait.
    """

    def __init__(
        self,
        run: Callable[[list[GenerationRequest]], Awaitable[list[GenerationResult]]],
        *,
        size: int,
        wait_s: float,
        waiting_limit: int,
    ) -> None:
        self._run = run
        self._size = size
        self._wait_s = wait_s
        self._waiting_limit = waiting_limit
        self._waiting: deque[tuple[GenerationRequest, asyncio.Future[GenerationResult]]] = deque()
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, request: GenerationRequest) -> GenerationResult:
        """The answer to one request.

        Raises:
            Overloaded: As many requests are waiting as may wait.
            Exception: Whatever the engine raised for this request.
        """
        if len(self._waiting) >= self._waiting_limit:
            raise Overloaded(f"{len(self._waiting)} requests are already waiting.")
        answer: asyncio.Future[GenerationResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await answer

    async def _drain(self) -> None:
        if len(self._waiting) < self._size:
            await asyncio.sleep(self._wait_s)
        while self._waiting:
            count = min(self._size, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            batch = [(request, answer) for request, answer in taken if not answer.cancelled()]
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[GenerationRequest, asyncio.Future[GenerationResult]]]) -> None:
        """Settle a batch's futures; where it fails it is retried one by one, so a bad request fails alone."""
        try:
            results = await self._run([request for request, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for pair in batch:
                    await self._answer([pair])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)


class EngineClient:
    """Runs one engine's calls on a worker thread and awaits them.

    Args:
        engine: From now on used by the worker thread only.
        batch_size, batch_wait_s, waiting_limit: See `MicroBatcher`.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        *,
        batch_size: int = 16,
        batch_wait_s: float = 0.003,
        waiting_limit: int = 64,
    ) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="casa-engine")
        self._streams = 0
        self._stream_limit = waiting_limit
        self._batcher = MicroBatcher(
            lambda requests: self.run(engine.generate, requests),
            size=batch_size,
            wait_s=batch_wait_s,
            waiting_limit=waiting_limit,
        )

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer a plain request, batched with those that arrive at the same time."""
        return await self._batcher.submit(request)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Yield an answer's pieces as they are generated. Closing the iterator early ends the generation.

        Raises:
            Overloaded: As many streams are open as requests may wait.
        """
        if self._streams >= self._stream_limit:
            raise Overloaded(f"{self._streams} answers are being streamed already.")
        self._streams += 1
        deltas: Iterator[GenerationDelta] | None = None
        try:
            deltas = iter(await self.run(self._engine.stream, request))
            while (delta := await self.run(_next_or_none, deltas)) is not None:
                yield delta
        finally:
            self._streams -= 1
            if (close := getattr(deltas, "close", None)) is not None:
                self.release(close)

    async def open_session(self, query: str, *, max_tokens_per_frame: int) -> StreamProtocol:
        """Open a live stream in the engine; its methods must be called by :meth:`run` and :meth:`release`."""
        return await self.run(
            lambda: self._engine.open_session(query, max_tokens_per_frame=max_tokens_per_frame)
        )

    async def ping(self) -> None:
        """Return once the worker thread has run a new call.

        Raises:
            RuntimeError: The client was closed.
        """
        await self.run(lambda: None)

    def close(self) -> None:
        """Stop the worker thread after the call in progress; queued calls are cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a blocking method of the engine, or of one of its streams, on the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def release(self, close: Callable[[], None]) -> None:
        """Queue a clean-up call; it runs even if the coroutine that asks for it is being cancelled."""
        self._thread.submit(close).add_done_callback(_log_failure)


def _next_or_none(deltas: Iterator[GenerationDelta]) -> GenerationDelta | None:
    """`StopIteration` cannot pass through a future, so the end is `None`."""
    return next(deltas, None)


def _log_failure(finished: Future[None]) -> None:
    if not finished.cancelled() and (error := finished.exception()) is not None:
        logger.error("releasing engine state failed", exc_info=error)
