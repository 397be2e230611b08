"""What the API asks of the engines: one in this process, or any number on a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import ClusterError


class ModelUnavailable(ClusterError):
    """One of several models, whose checkpoint cannot be loaded."""


class OpenStream(Protocol):
    """One live stream. Iterating gives its outcomes: captions in the order of their frames, frames dropped
    or refused, moves to another engine."""

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """Queue a frame; what becomes of it is an outcome.

        It is not waited for, so that frames which come too fast are dropped by the engine and not kept back
        in the connection; a flood of them is.
        """
        ...

    async def prompt(self, query: str) -> None:
        """Ask something further; the answer is an outcome.

        Raises:
            DataError: If it is too long, or the stream has ended.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def finish(self) -> None:
        """Let the iteration end after the outcomes that are there."""
        ...

    @property
    def place(self) -> tuple[str, str] | None:
        """Its replica, and its name there; ``None`` without any, and while it moves."""
        ...

    def state(self) -> Transcript | None:
        """What another process can go on from, approximately; ``None`` where it cannot at this moment."""
        ...

    async def leave(self) -> SavedSession | Transcript | None:
        """End it here for another process, which goes on from what is returned: exactly if possible."""
        ...

    def close(self) -> None:
        """Free the stream's slot; closing twice is harmless."""
        ...


class EngineCalls(Protocol):
    """Answers and live streams."""

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Answer a request. Cancelling the coroutine ends the generation.

        Raises:
            Overloaded: As many requests wait as may wait, or there is no room for the model.
            ModelUnavailable: Its checkpoint cannot be loaded.
            Exception: Whatever the engine says is wrong with the request.
        """
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Yield an answer's pieces as they are generated; errors as :meth:`generate`. Closing the iterator
        early ends the generation."""
        ...

    async def open_session(
        self, settings: StreamSettings, begin: SavedSession | Transcript | None = None
    ) -> OpenStream:
        """Open a live stream.

        Args:
            settings: How it is captioned.
            begin: What another process left of it, with which it goes on.

        Raises:
            Overloaded: There is no slot, or no time, for another, or no room for the model.
            ModelUnavailable: Its checkpoint cannot be loaded.
        """
        ...

    async def ping(self) -> None:
        """Return once an engine's thread has made a new call.

        Raises:
            RuntimeError: It cannot.
        """
        ...

    async def load(self) -> LoadSnapshot:
        """What the engines hold now; errors as :meth:`ping`."""
        ...

    def close(self) -> None:
        """End everything."""
        ...
