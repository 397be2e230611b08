"""The engines behind the endpoint, as its API calls them: on any number of replicas, whichever live.

An answer whose replica dies is asked for again elsewhere; what was streamed of it already is left out, since
the same request has the same tokens. Live streams move: :mod:`serve.moving_stream`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import TypeGuard, TypeVar

from ray.serve.handle import DeploymentHandle

from casa_core.engine.events import Failed
from casa_core.engine.load import LoadSnapshot, together
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from serve.departures import on_departure, replicas
from serve.moving_stream import GONE, MovingStream, detached, streaming
from serve.own_calls import call_apart
from serve.routing import MODEL_PREFIX

logger = logging.getLogger("casa.serve")
T = TypeVar("T")

ATTEMPTS = 4
"""How often an answer is asked for whose replicas die."""
HOLD_S = 10.0
"""Seconds after which engines are told again that the endpoint of their streams lives."""


class Engines:
    """The engine deployment behind its handle; ``EngineCalls``.

    Args:
        several: Whether they hold several models, so that calls are routed by theirs.
    """

    def __init__(self, handle: DeploymentHandle, *, several: bool = False) -> None:
        self._handle, self._several = handle, several
        self._streams: set[MovingStream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holding: asyncio.Task[None] | None = None
        self._end_listening = on_departure(self._departed)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer a request; as ``EngineCalls.generate``."""
        request = _repeatable(request)
        for attempt in range(1, ATTEMPTS + 1):
            response = call_apart(self._handle_for(request.model).generate, request)
            try:
                return _value(await response)
            except GONE as error:
                _again(request, attempt, error)
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise AssertionError("the last attempt returns or raises")

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Answer a request piece by piece; as ``EngineCalls.stream``."""
        request, given = _repeatable(request), _Given()
        for attempt in range(1, ATTEMPTS + 1):
            response = call_apart(streaming(self._handle_for(request.model)).stream, request)
            given.again()
            try:
                async for batch in response:
                    for piece in batch:
                        if (delta := given.rest(_value(piece))) is not None:
                            yield delta
                return
            except GONE as error:
                _again(request, attempt, error)
            except (asyncio.CancelledError, GeneratorExit):
                response.cancel()
                raise

    async def open_session(
        self, settings: StreamSettings, begin: SavedSession | Transcript | None = None
    ) -> MovingStream:
        """Open a live stream; as ``EngineCalls.open_session``."""
        self._loop = asyncio.get_running_loop()
        self._holding = self._holding or detached(self._hold())
        stream = MovingStream(self._handle_for(settings.model), settings, self._streams.discard, begin)
        self._streams.add(stream)
        try:
            await stream.opened()
        except BaseException:
            stream.close()
            raise
        return stream

    async def ping(self) -> None:
        """Return once the engine of a replica has made a call."""
        await self._handle.ping.remote()

    async def load(self) -> LoadSnapshot:
        """What the engines hold together; the shares of time are the busiest's."""
        asked = [call_apart(self._handle.options(session_id=one).load) for one in replicas()]
        loads = [one for one in await asyncio.gather(*asked, return_exceptions=True) if _answered(one)]
        if not loads:
            loads = [await self._handle.load.remote()]
        return together(loads)

    def close(self) -> None:
        """End all streams."""
        self._end_listening()
        if self._holding is not None:
            self._holding.cancel()
        for stream in list(self._streams):
            stream.close()

    async def end_stream(self, replica: str, name: str) -> None:
        """End a stream of an endpoint that is gone, if it still runs."""
        with suppress(*GONE):
            await self._handle.options(session_id=replica).finish.remote(name)

    async def _hold(self) -> None:
        """Keep all streams from being ended as those of an endpoint that is gone: one call per replica."""
        while True:
            await asyncio.sleep(HOLD_S)
            there: dict[str, list[str]] = {}
            for stream in self._streams:
                if (place := stream.place) is not None:
                    there.setdefault(place[0], []).append(place[1])
            calls = [self._handle.options(session_id=one).hold.remote(names) for one, names in there.items()]
            with suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    await asyncio.gather(*calls, return_exceptions=True)  # of those that are gone

    def _handle_for(self, model: str) -> DeploymentHandle:
        """The handle for calls about a model that name no replica."""
        return self._handle.options(session_id=MODEL_PREFIX + model) if self._several else self._handle

    def _departed(self, replica: str) -> None:
        """From a thread of Serve's: have the streams of a replica that leaves fetched."""

        def fetch() -> None:
            for stream in list(self._streams):
                stream.fetch_from(replica)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(fetch)


class _Given:
    """How much of a streamed answer its client has, which an answer begun anew repeats."""

    def __init__(self) -> None:
        self._given = self._repeated = 0, 0  # characters, and tokens with log-probabilities

    def again(self) -> None:
        """The answer begins anew."""
        self._repeated = 0, 0

    def rest(self, delta: GenerationDelta) -> GenerationDelta | None:
        """What of a piece is new, if anything is."""
        known = [given - repeated for given, repeated in zip(self._given, self._repeated, strict=True)]
        self._repeated = self._repeated[0] + len(delta.text), self._repeated[1] + len(delta.logprobs)
        self._given = max(self._given[0], self._repeated[0]), max(self._given[1], self._repeated[1])
        if not any(known):
            return delta
        new = replace(delta, text=delta.text[known[0] :], logprobs=delta.logprobs[known[1] :])
        return new if new.text or new.logprobs or new.finish_reason is not None else None


def _answered(answer: LoadSnapshot | BaseException) -> TypeGuard[LoadSnapshot]:
    if isinstance(answer, BaseException) and not isinstance(answer, GONE):
        raise answer
    return not isinstance(answer, BaseException)


def _repeatable(request: GenerationRequest) -> GenerationRequest:
    """The request with a seed, so that it has the same tokens when it is asked again."""
    if request.sampling.seed is not None or request.sampling.temperature == 0:
        return request
    return replace(request, sampling=replace(request.sampling, seed=random.getrandbits(63)))


def _value(outcome: T | Failed) -> T:
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def _again(request: GenerationRequest, attempt: int, error: Exception) -> None:
    if attempt == ATTEMPTS:
        raise error
    logger.warning("request %s: its replica is gone (%s); again", request.request_id, type(error).__name__)
