"""The engine deployment: for each replica the engines of its models, called by the endpoint's handle.

Errors of the engine that a user can cause come back as values (:class:`Failed`), since Ray Serve would hand
on its own error class in their place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ray import serve as ray_serve

from casa_core.engine.client import Item, LiveSession
from casa_core.engine.events import Failed, Overloaded
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    StreamSettings,
)
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import CasaError, DataError, StoreError
from serve.api.settings import ServeSettings
from serve.loading import engine_settings, load_pool, with_local_folders
from serve.loopback import keep_replica_on_loopback

logger = logging.getLogger("casa.serve")

LEASE_S = 60.0
"""Seconds after which a stream about which nothing is heard is ended, as its endpoint has died; at least
twice `limits.idle_seconds`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The first item of a stream: the replica that holds it, and whether it goes on exactly."""

    replica: str
    exact: bool


@dataclass(slots=True)
class _Held:
    session: LiveSession
    heard: float


class EngineReplica:
    """One replica. Takes `ServeSettings` as JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._copies = ExitStack()  # as long as the replica runs
        own = ServeSettings.model_validate(with_local_folders(settings, self._copies, ("model_folder",)))
        if own.loopback_only:
            keep_replica_on_loopback()
        self._engines = load_pool(own, self._copies)
        self._several = bool(own.models)
        self._slots = engine_settings(own.limits)
        self._captions = 0, 0  # and those of them after their deadline, since the last look
        self._held: dict[str, _Held] = {}
        self._lease_s = max(LEASE_S, 2 * own.limits.idle_seconds)
        self._id = ray_serve.get_replica_context().replica_id.unique_id
        logger.info("replica %s computes %s from %s", self._id, own.model_name, own.model_folder)

    async def generate(self, request: GenerationRequest) -> GenerationResult | Failed:
        """Answer a request."""
        try:
            return await self._engines.generate(request)
        except CasaError as error:
            return Failed(error)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Sequence[GenerationDelta | Failed]]:
        """Answer a request piece by piece."""
        try:
            engine = await self._engines.engine(request.model)
            async for deltas in engine.stream_batches(request):
                yield deltas
        except CasaError as error:
            yield [Failed(error)]

    async def open(
        self, name: str, settings: StreamSettings, begin: SavedSession | Transcript | None
    ) -> AsyncIterator[list[Opened | Item]]:
        """Open the live stream ``name``, or go on with it; what comes of it, until it ends or departs."""
        try:
            session, exact = await self._opened(settings, begin)
        except CasaError as error:
            yield [Failed(error)]
            return
        self._held[name] = _Held(session, time.monotonic())
        watching = asyncio.create_task(self._end_forgotten(name))
        try:
            yield [Opened(self._id, exact)]
            async for batch in session.batches():
                self._count(batch)
                # Its endpoint has the frames, and sends those again that were not read.
                yield [_without_frames(item) for item in batch]
        finally:
            watching.cancel()
            del self._held[name]
            session.close()

    async def feed(self, name: str, frames: list[tuple[float, FrameImage]]) -> bool:
        """Queue a stream's next frames; false where it is not, or no longer, here."""
        if (held := self._held.get(name)) is None:
            return False
        held.heard = time.monotonic()
        for timestamp, image in frames:
            await held.session.push_frame(image, timestamp)
        return True

    async def prompt(self, name: str, query: str) -> Failed | bool:
        """Ask something further; false where the stream is not here."""
        if (held := self._held.get(name)) is None:
            return False
        held.heard = time.monotonic()
        try:
            await held.session.prompt(query)
        except CasaError as error:
            return Failed(error)
        return True

    async def depart(self, name: str) -> bool:
        """End a stream with its snapshot, for another replica to go on with."""
        if (held := self._held.get(name)) is None:
            return False
        try:
            await held.session.depart()
        except DataError as error:
            logger.info("stream %s ended before it could depart: %s", name, error.what)
        return True

    async def finish(self, name: str) -> None:
        """End a stream."""
        if (held := self._held.get(name)) is not None:
            held.session.finish()

    async def hold(self, names: list[str]) -> None:
        """Keep streams for another lease: their endpoint lives."""
        for name in names:
            if (held := self._held.get(name)) is not None:
                held.heard = time.monotonic()

    async def ping(self) -> None:
        """Return once the engine's thread has made a call."""
        await self._engines.ping()

    async def load(self) -> LoadSnapshot:
        """What the engine holds now."""
        return await self._engines.load()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What :func:`serve.autoscaling.replicas_wanted` goes by; counts since the last call."""
        load, (captions, late) = await self._engines.load(), self._captions
        self._captions = 0, 0
        return {
            "streams": load.streams,
            "stream_slots": self._slots.stream_slots,
            "live_share": max(load.live_share, load.images_share),
            "waiting": load.answers_waiting,
            "answer_slots": self._slots.answer_slots,
            "captions": captions,
            "late": late,
        }

    async def record_routing_stats(self) -> dict[str, Any]:
        """What :class:`serve.routing.StickyRouter` goes by, where there are several models."""
        if not self._several:
            return {}
        load, slots = await self._engines.load(), self._slots
        full = load.streams >= slots.stream_slots or load.answers_waiting > slots.answer_slots
        return {"models": sorted(self._engines.held), "full": full}

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica whose engine's thread has died."""
        self._engines.check_alive()

    async def _opened(
        self, settings: StreamSettings, begin: SavedSession | Transcript | None
    ) -> tuple[LiveSession, bool]:
        """The stream, and whether it goes on exactly. Another model than before reads its text again, or
        begins anew where it cannot."""
        attempts = [begin, begin.transcript if isinstance(begin, SavedSession) else None, None]
        for number, one in enumerate(attempts):
            try:
                engine = await self._engines.engine(settings.model)
                session = await engine.open_session(settings, one, transcripts=True)
            except Overloaded:
                raise
            except (StoreError, DataError) as error:
                if one is None:
                    raise
                logger.info("a stream cannot go on from its %s: %s", type(one).__name__, error.what)
                continue
            return session, number == 0
        raise AssertionError("the last attempt begins anew")

    def _count(self, batch: list[Item]) -> None:
        captions = [item for item in batch if isinstance(item, CaptionEvent) and item.prompt is None]
        late = sum(caption.late_s > 0 for caption in captions)
        self._captions = self._captions[0] + len(captions), self._captions[1] + late

    async def _end_forgotten(self, name: str) -> None:
        while (held := self._held[name]).heard > time.monotonic() - self._lease_s:
            await asyncio.sleep(self._lease_s / 4)
        logger.warning("nothing was heard of stream %s for %.0f s; it is ended", name, self._lease_s)
        held.session.finish()


def _without_frames(item: Item) -> Item:
    match item:
        case Transcript():
            return replace(item, frame=None, waiting=())
        case SavedSession():
            return replace(item, transcript=replace(item.transcript, waiting=()))
    return item
