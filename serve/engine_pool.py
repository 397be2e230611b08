"""The engines of one process: one for each checkpoint that it holds, loaded when it is asked for."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from casa_core.engine.client import EngineClient, LiveSession
from casa_core.engine.events import Overloaded
from casa_core.engine.load import LoadSnapshot, together
from casa_core.engine.protocol import LoopProtocol
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.heap import trim_heap
from serve.calls import ModelUnavailable

logger = logging.getLogger("casa.serve")
T = TypeVar("T")

NO_ROOM_RETRY_S = 5.0
"""When to ask again for a model for which there was no room."""
FAILED_S = 30.0
"""Seconds after which a checkpoint that could not be loaded is tried again."""


class EnginePool:
    """Engines by the names of their models: :class:`serve.calls.EngineCalls`, for one event loop.

    The first model is loaded at once, the others when they are asked for: one at a time, while those that are
    there go on. Where there is no room, the engine that was not used for longest, of those without an answer
    or a stream, is ended and its memory given back.

    Args:
        load: Loads the engine of a model.
        names: The models that there are. Any other name means the first: an endpoint may outlive the
            deployment whose names it has.
        most: How many are held at a time.
    """

    def __init__(self, load: Callable[[str], LoopProtocol], names: Sequence[str], most: int = 1) -> None:
        self._load, self._names, self._most = load, tuple(names), most
        own = self._names[0]
        self._clients = OrderedDict({own: EngineClient(load(own))})  # the one not used for longest first
        self._loading: dict[str, asyncio.Task[EngineClient]] = {}
        self._turn = asyncio.Lock()
        self._wanted: Counter[str] = Counter()  # callers that wait for a model, who are about to use it
        self._failed: dict[str, float] = {}  # when a model could not be loaded
        self._ended = LoadSnapshot(slots=0)

    @property
    def held(self) -> tuple[str, ...]:
        """The models that are loaded, the one not used for longest first."""
        return tuple(self._clients)

    async def engine(self, model: str) -> EngineClient:
        """The engine of a model, loaded where it is not. It stays if something is asked of it at once.

        Raises:
            Overloaded: There is no room for it, as all engines are in use.
            ModelUnavailable: It cannot be loaded.
        """
        name = model if model in self._names else self._names[0]
        if (client := self._clients.get(name)) is None:
            self._wanted[name] += 1
            try:
                client = await asyncio.shield(self._load_of(name))
            finally:
                self._wanted[name] -= 1
        self._clients.move_to_end(name)
        return client

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As ``EngineCalls.generate``."""
        return await (await self.engine(request.model)).generate(request)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """As ``EngineCalls.stream``."""
        client = await self.engine(request.model)
        async with aclosing(client.stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def open_session(
        self, settings: StreamSettings, begin: SavedSession | Transcript | None = None
    ) -> LiveSession:
        """As ``EngineCalls.open_session``."""
        return await (await self.engine(settings.model)).open_session(settings, begin)

    async def ping(self) -> None:
        """As ``EngineCalls.ping``, of all engines."""
        await self._each(EngineClient.ping)

    async def load(self) -> LoadSnapshot:
        """What the engines hold together, with the counts of those that have ended."""
        return together([self._ended, *await self._each(EngineClient.load)])

    def check_alive(self) -> None:
        """Raises:
        RuntimeError: An engine has stopped.
        """
        for client in self._clients.values():
            client.check_alive()

    def close(self) -> None:
        """End all engines."""
        for client in self._clients.values():
            client.close()

    async def _each(self, ask: Callable[[EngineClient], Awaitable[T]]) -> list[T]:
        """Ask one engine after the other; those that end meanwhile are left out."""
        return [await ask(one) for name in self.held if (one := self._clients.get(name)) is not None]

    def _load_of(self, name: str) -> asyncio.Task[EngineClient]:
        """The loading of a model, which goes on if those who wait for it leave."""
        if (task := self._loading.get(name)) is None:
            task = self._loading[name] = asyncio.create_task(self._loaded(name))
            task.add_done_callback(lambda _: self._loading.pop(name))
        return task

    async def _loaded(self, name: str) -> EngineClient:
        async with self._turn:
            if name in self._failed and time.monotonic() < self._failed[name] + FAILED_S:
                raise _unavailable(name)
            await self._make_room()
            began = time.monotonic()
            try:
                engine = await asyncio.to_thread(self._load, name)
            except Exception:
                logger.exception("the model %s cannot be loaded", name)
                self._failed[name] = time.monotonic()
                raise _unavailable(name) from None
            logger.info("the model %s is loaded, after %.1f s", name, time.monotonic() - began)
            client = self._clients[name] = EngineClient(engine)
            return client

    async def _make_room(self) -> None:
        while len(self._clients) >= self._most:
            idle = [name for name, one in self._clients.items() if one.idle and not self._wanted[name]]
            if not idle:
                raise Overloaded(
                    "The model is not loaded, and there is no room for it.",
                    f"{', '.join(self._clients)} have answers or live sessions in progress.",
                    NO_ROOM_RETRY_S,
                )
            await self._end(self._clients.pop(idle[0]))
            logger.info("the model %s has made room", idle[0])
            await asyncio.to_thread(_free_memory)

    async def _end(self, client: EngineClient) -> None:
        self._ended = together([self._ended, (await client.load()).counts])
        await client.ended()


def _free_memory() -> None:
    gc.collect()  # a model refers to itself
    trim_heap()
    import torch  # late: an endpoint never loads it

    torch.cuda.empty_cache()


def _unavailable(name: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"The model {name!r} cannot be loaded.",
        "The server's log has the reason.",
        f"Use another model, or try again in {FAILED_S:.0f} seconds.",
    )
