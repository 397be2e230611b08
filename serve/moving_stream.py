"""A live stream that outlives its replica.

A replica that leaves (drained, scaled down, replaced) gives its streams back as snapshots, and each goes on
elsewhere with the same tokens. After a crash a stream goes on from its last transcript: its text and latest
frame are read again. The endpoint keeps both, and the frames that have no words yet, which it sends again;
so the client sends nothing twice. :meth:`MovingStream.state` is the same for another endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from casa_core.engine.events import (
    Failed,
    Outcome,
    Overloaded,
    StreamMoved,
)
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import ClusterError
from serve.engine_replica import Opened
from serve.stream_record import Asked, StreamRecord

logger = logging.getLogger("casa.serve")

MOVING_S = 120.0
"""Seconds in which a stream must have found another replica."""
LEAVE_S = 10.0
"""Seconds in which a replica must give a stream back that goes on at another endpoint."""
UNSENT = 64
"""Frames that the replica has not taken yet; more of a flood are held back in the connection."""
GONE = (
    *(RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, RaySystemError, TaskCancelledError),
    DeploymentUnavailableError,
)
"""What a call raises whose replica is gone."""

_running: set[asyncio.Task[Any]] = set()


class MovingStream:
    """One live stream on whichever replica holds it; an :class:`serve.calls.OpenStream`.

    Iterating gives its outcomes, :class:`StreamMoved` among them.

    Args:
        handle: The engine deployment's, routed by :class:`serve.routing.StickyRouter`.
        closed: Called when it is closed.
        begin: What another endpoint's stream left, which it goes on with as one that moves.
    """

    def __init__(
        self,
        handle: DeploymentHandle,
        settings: StreamSettings,
        closed: Callable[[MovingStream], None],
        begin: SavedSession | Transcript | None = None,
    ) -> None:
        self._handle, self._settings, self._closed = handle, settings, closed
        self._id, self._stays = uuid.uuid4().hex, 0
        self._replica = ""
        self._left: set[str] = set()  # replicas it must not stay on
        self._record = StreamRecord(settings)
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._here, self._more, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._given_back: asyncio.Future[SavedSession | None] | None = None  # once it leaves this endpoint
        if begin is not None:
            self._first.set_result(None)  # there is a client already, who is told if it cannot go on
            begin = self._record.take_over(begin)
        self._tasks = [detached(self._follow(begin)), detached(self._send())]

    async def opened(self) -> None:
        """Wait until a replica holds it.

        Raises:
            CasaError: What the engine says is wrong, or that it has no room.
        """
        await asyncio.shield(self._first)

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """Queue a frame; what becomes of it is an outcome."""
        self._record.push(image, timestamp)
        self._more.set()
        if len(self._record.unsent) > UNSENT:
            self._room.clear()
            await self._room.wait()

    async def prompt(self, query: str) -> None:
        """Ask something further; the answer is an outcome.

        Raises:
            DataError: If it is too long, or the stream has ended.
            ClusterError: If no replica takes the stream.
        """
        asked = Asked(query)
        self._record.asked.append(asked)
        try:
            async with asyncio.timeout(MOVING_S):
                while not asked.taken:
                    await self._here.wait()
                    await self._ask(asked)
        except TimeoutError:
            raise _lost() from None
        finally:
            if not asked.taken:
                self._record.asked.remove(asked)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        outcome = await self._outcomes.get()
        if outcome is None:
            raise StopAsyncIteration
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    @property
    def place(self) -> tuple[str, str] | None:
        """The replica that holds it, and its name there; ``None`` while it moves."""
        return (self._replica, self._name) if self._here.is_set() else None

    def state(self) -> Transcript | None:
        """What another endpoint can go on from, approximately: its text and latest frame, the frames without
        words and the questions without answers.

        ``None`` while outcomes wait to be iterated over: they are in the text already, and their reader has
        not had them.
        """
        return self._record.state() if self._outcomes.empty() else None

    async def leave(self) -> SavedSession | Transcript | None:
        """End it here for another endpoint, once all its outcomes were iterated over.

        Returns:
            What it goes on from: exactly where its replica gives it back, else as :meth:`state`.
        """
        self._given_back = asyncio.get_running_loop().create_future()
        saved: SavedSession | None = None
        try:
            async with asyncio.timeout(LEAVE_S):
                if self._here.is_set() and await self._call("depart"):
                    saved = await self._given_back
        except TimeoutError:
            logger.warning("stream %s: %s did not give it back", self._id, self._replica)
        for task in self._tasks:
            task.cancel()
        while self._tasks and not self._outcomes.empty():
            await asyncio.sleep(0.001)
        return self._record.state() if saved is None else self._record.complete(saved)

    def finish(self) -> None:
        """Let the iteration end after the outcomes that are there."""
        self._outcomes.put_nowait(None)

    def close(self) -> None:
        """End it, wherever it is; closing twice is harmless."""
        for task in self._tasks:
            task.cancel()
        if self._tasks and self._replica:
            detached(self._call("finish"))
        self._tasks = []
        self._closed(self)

    def fetch_from(self, replica: str) -> None:
        """Have it depart from a replica that leaves, if it is there."""
        self._left.add(replica)
        if self._replica == replica and self._tasks:
            detached(self._call("depart"))

    @property
    def _name(self) -> str:
        """Its name on its replica, another for each stay: a call that Serve sends on to another replica, as
        the one it was meant for has died, finds nothing there."""
        return f"{self._id}.{self._stays}"

    async def _call(self, method: str, *arguments: Any) -> Any:
        """A call about it, to the replica that holds it; false where that is gone."""
        handle = self._handle.options(session_id=self._replica, method_name=method)
        stay = self._stays
        try:
            taken = await handle.remote(self._name, *arguments)
        except GONE as error:
            logger.info("stream %s: %s is gone (%s)", self._id, self._replica, type(error).__name__)
            taken = False
        if taken is False and stay == self._stays:
            self._here.clear()  # until it has moved
        return taken

    async def _ask(self, asked: Asked) -> None:
        """Hand a question to the replica; where it is gone, once the stream has moved it is tried again."""
        taken = await self._call("prompt", asked.query)
        if isinstance(taken, Failed):
            raise taken.error
        asked.taken = taken or asked.taken

    async def _send(self) -> None:
        """Send the frames in their order, as many together as there are."""
        while True:
            await self._more.wait()
            await self._here.wait()
            self._more.clear()
            frames = self._record.take_unsent()
            self._room.set()
            if frames:
                await self._call("feed", frames)  # where that fails, they are sent again once it has moved

    async def _follow(self, begin: SavedSession | Transcript | None) -> None:
        """Keep it on a replica, and hand its outcomes on."""
        moving_since = time.monotonic() if self._first.done() else None  # since it left a replica
        try:
            while moving_since is None or time.monotonic() < moving_since + MOVING_S:
                ended = await self._stay(begin, moved=moving_since is not None)
                self._here.clear()
                if self._given_back is not None:
                    if not self._given_back.done():
                        self._given_back.set_result(ended if isinstance(ended, SavedSession) else None)
                    return
                if isinstance(ended, Overloaded):
                    if moving_since is None:
                        raise ended
                    await asyncio.sleep(1)
                    continue
                begin = ended if isinstance(ended, SavedSession) else self._record.last_known()
                moving_since = time.monotonic()
            raise _lost()
        except Exception as error:
            if self._first.done():
                self._outcomes.put_nowait(Failed(error))
            else:
                self._first.set_exception(error)

    async def _stay(
        self, begin: SavedSession | Transcript | None, *, moved: bool
    ) -> SavedSession | Exception | None:
        """Its time on one replica.

        Returns:
            How it ended there: with a snapshot, by an error that another replica may not have, or with
            nothing, where a replica that had heard nothing of it has ended it.
        """
        self._stays += 1
        response = streaming(self._handle).open.remote(self._name, self._settings, begin)
        saved: SavedSession | None = None
        try:
            async for batch in response:
                for item in batch:
                    match item:
                        case Opened():
                            self._arrive(item, begin if moved else None, moved)
                        case SavedSession():
                            saved = item
                        case Transcript():
                            self._record.keep(item)
                        case Failed(Overloaded() as error):
                            return error
                        case Failed(error):
                            raise error
                        case _:
                            self._record.note(item)
                            self._outcomes.put_nowait(item)
        except GONE as error:
            logger.warning("stream %s: %s is gone (%s)", self._id, self._replica, type(error).__name__)
            return error
        except asyncio.CancelledError:
            if not self._replica:
                response.cancel()  # one that is held is ended by a call
            raise
        return saved

    def _arrive(self, opened: Opened, begin: SavedSession | Transcript | None, moved: bool) -> None:
        self._replica = opened.replica
        if moved:
            exact = opened.exact and isinstance(begin, SavedSession)
            read = begin.transcript if isinstance(begin, SavedSession) else begin
            lost, ask_again = self._record.to_send_again(read if opened.exact else None)
            for asked in ask_again:
                detached(self._ask(asked))
            self._outcomes.put_nowait(StreamMoved(exact, lost))
        if not self._first.done():
            self._first.set_result(None)
        self._here.set()
        self._more.set()
        if opened.replica in self._left:
            self.fetch_from(opened.replica)


def streaming(handle: DeploymentHandle) -> Any:
    """The handle for calls whose answer comes in pieces. Ray's types know only the other ones."""
    return handle.options(stream=True)


def detached(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run it outside of the request that is being served: Serve ends its calls with that request."""
    task = asyncio.get_running_loop().create_task(coroutine, context=Context())
    _running.add(task)
    task.add_done_callback(_done)
    return task


def _done(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a call about a stream failed", exc_info=error)


def _lost() -> ClusterError:
    return ClusterError(
        "The live session is lost.",
        f"No replica has taken it over for {MOVING_S:.0f} seconds.",
        "Open another session.",
    )
