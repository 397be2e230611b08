"""A live stream that outlives its replica.

A replica that leaves (drained, scaled down, replaced) gives its streams back as snapshots, and each goes on
elsewhere with the same tokens. After a crash a stream goes on from its last transcript: its text and latest
frame are read again. The endpoint keeps both, and the frames that have no words yet, which it sends again;
so the client sends nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
    FrameDropped,
    FrameRefused,
    Outcome,
    Overloaded,
    StreamMoved,
)
from casa_core.engine.live_stream import StreamSettings
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import ClusterError
from casa_core.media.decode import encode_png
from serve.engine_replica import Opened

logger = logging.getLogger("casa.serve")

MOVING_S = 120.0
"""Seconds in which a stream must have found another replica."""
UNSENT = 64
"""Frames that the replica has not taken yet; more of a flood are held back in the connection."""
GONE = (
    *(RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, RaySystemError, TaskCancelledError),
    DeploymentUnavailableError,
)
"""What a call raises whose replica is gone."""

_running: set[asyncio.Task[Any]] = set()


@dataclass(slots=True, eq=False)
class _Asked:
    """A further question without an answer; ``taken`` once a replica has it."""

    query: str
    taken: bool = False


class MovingStream:
    """One live stream on whichever replica holds it; an :class:`serve.calls.OpenStream`.

    Iterating gives its outcomes, :class:`StreamMoved` among them.

    Args:
        handle: The engine deployment's, routed by :class:`serve.routing.StickyRouter`.
        closed: Called when it is closed.
    """

    def __init__(
        self, handle: DeploymentHandle, settings: StreamSettings, closed: Callable[[MovingStream], None]
    ) -> None:
        self._handle, self._settings, self._closed = handle, settings, closed
        self._id, self._stays = uuid.uuid4().hex, 0
        self._replica = ""
        self._left: set[str] = set()  # replicas it must not stay on
        self._due: dict[float, FrameImage] = {}  # frames without words
        self._unsent: deque[float] = deque()
        self._latest: tuple[float, FrameImage] | None = None  # with words
        self._picture: FrameImage | None = None  # of the transcript
        self._asked: deque[_Asked] = deque()
        self._transcript: Transcript | None = None
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._here, self._more, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._tasks = [_detached(self._follow()), _detached(self._send())]

    async def opened(self) -> None:
        """Wait until a replica holds it.

        Raises:
            CasaError: What the engine says is wrong, or that it has no room.
        """
        await asyncio.shield(self._first)

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """Queue a frame; what becomes of it is an outcome."""
        self._due[timestamp] = image
        self._unsent.append(timestamp)
        self._more.set()
        if len(self._unsent) > UNSENT:
            self._room.clear()
            await self._room.wait()

    async def prompt(self, query: str) -> None:
        """Ask something further; the answer is an outcome.

        Raises:
            DataError: If it is too long, or the stream has ended.
            ClusterError: If no replica takes the stream.
        """
        asked = _Asked(query)
        self._asked.append(asked)
        try:
            async with asyncio.timeout(MOVING_S):
                while not asked.taken:
                    await self._here.wait()
                    await self._ask(asked)
        except TimeoutError:
            raise _lost() from None
        finally:
            if not asked.taken:
                self._asked.remove(asked)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        outcome = await self._outcomes.get()
        if outcome is None:
            raise StopAsyncIteration
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    def finish(self) -> None:
        """Let the iteration end after the outcomes that are there."""
        self._outcomes.put_nowait(None)

    def close(self) -> None:
        """End it, wherever it is; closing twice is harmless."""
        for task in self._tasks:
            task.cancel()
        if self._tasks and self._replica:
            _detached(self._call("finish"))
        self._tasks = []
        self._closed(self)

    def fetch_from(self, replica: str) -> None:
        """Have it depart from a replica that leaves, if it is there."""
        self._left.add(replica)
        if self._replica == replica and self._tasks:
            _detached(self._call("depart"))

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

    async def _ask(self, asked: _Asked) -> None:
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
            frames = [(timestamp, self._due[timestamp]) for timestamp in self._unsent]
            self._unsent.clear()
            self._room.set()
            if frames:
                await self._call("feed", frames)  # where that fails, they are sent again once it has moved

    async def _follow(self) -> None:
        """Keep it on a replica, and hand its outcomes on."""
        begin: SavedSession | Transcript | None = None
        moving_since: float | None = None  # since it left a replica
        try:
            while moving_since is None or time.monotonic() < moving_since + MOVING_S:
                ended = await self._stay(begin, moved=moving_since is not None)
                self._here.clear()
                if ended is None:
                    return
                if isinstance(ended, Overloaded):
                    if moving_since is None:
                        raise ended
                    await asyncio.sleep(1)
                    continue
                begin = ended if isinstance(ended, SavedSession) else self._last_known()
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
            How it ended there: with a snapshot, by an error that another replica may not have, or for good.
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
                            self._keep(item)
                        case Failed(Overloaded() as error):
                            return error
                        case Failed(error):
                            raise error
                        case _:
                            self._note(item)
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
            lost = self._send_again(read if opened.exact else None)
            self._outcomes.put_nowait(StreamMoved(exact, lost))
        if not self._first.done():
            self._first.set_result(None)
        self._here.set()
        self._more.set()
        if opened.replica in self._left:
            self.fetch_from(opened.replica)

    def _send_again(self, read: Transcript | None) -> tuple[float, ...]:
        """Queue what its new replica has not read; the times of frames whose words are lost."""
        until, words, prompts = (
            (-1.0, False, 0) if read is None else (read.timestamp, bool(read.words), len(read.prompts))
        )
        in_progress = until if read is not None and words and not read.answering else None
        lost = tuple(one for one in self._due if one <= until and one != in_progress)
        for timestamp in lost:
            del self._due[timestamp]
        self._unsent = deque(one for one in self._due if one > until)
        taken = [asked for asked in self._asked if asked.taken]
        for asked in taken[prompts:]:
            _detached(self._ask(asked))
        return lost

    def _keep(self, transcript: Transcript) -> None:
        """Keep what a crash leaves of it. The frame is the endpoint's own copy."""
        at, image = self._latest or (-1.0, None)
        self._picture = image if at == transcript.timestamp else self._due.get(transcript.timestamp)
        self._transcript = transcript

    def _last_known(self) -> Transcript | None:
        """What it goes on from after a crash."""
        picture = self._picture
        frame = encode_png(picture) if isinstance(picture, np.ndarray) else picture
        return None if self._transcript is None else replace(self._transcript, frame=frame)

    def _note(self, outcome: Outcome) -> None:
        match outcome:
            case CaptionEvent(prompt=str()):
                self._asked.popleft()
            case CaptionEvent(timestamp=timestamp):
                self._latest = timestamp, self._due.pop(timestamp)
            case FrameDropped(timestamp) | FrameRefused(timestamp):
                self._due.pop(timestamp)
        self._outcomes.put_nowait(outcome)


def streaming(handle: DeploymentHandle) -> Any:
    """The handle for calls whose answer comes in pieces. Ray's types know only the other ones."""
    return handle.options(stream=True)


def _detached(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
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
