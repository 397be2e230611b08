"""The interfaces of the engine: in lockstep for evaluation, as a loop for serving; the tests' fakes share
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from casa_core.engine.requests import CaptionEvent, GenerationDelta, GenerationRequest, GenerationResult

if TYPE_CHECKING:
    from casa_core.engine.events import Event, Outcome
    from casa_core.engine.load import LoadSnapshot
    from casa_core.engine.requests import StreamSettings
    from casa_core.engine.saved_session import SavedSession, Transcript

FrameImage = bytes | NDArray[np.uint8]
"""A live frame's image: encoded bytes, or RGB pixels (height, width, 3)."""


@runtime_checkable
class StreamProtocol(Protocol):
    """One live-caption stream of an engine."""

    @property
    def text_tokens(self) -> int:
        """Text tokens in the stream's KV cache."""
        ...

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        """Read the next frame and generate the words that follow it.

        Args:
            image: ``None`` only for a model whose images are withheld (the blind baseline).
            timestamp: The frame's time in the stream, seconds; copied to the event.

        Raises:
            DataError: If the stream is closed, or its context is full.
            MediaError: If the frame cannot be decoded; the stream can go on without it.
        """
        ...

    def close(self) -> None:
        """Free the stream's memory; closing twice is harmless."""
        ...


@runtime_checkable
class EngineProtocol(Protocol):
    """Batched answers, streamed answers and live streams of one model, each waited for. Calls are not
    thread-safe."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about model and device, for reports."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answer requests in one batch, in their order.

        Raises:
            MediaError: If an image cannot be decoded.
            DataError: If a prompt and its answer do not fit the model's context.
        """
        ...

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        """Answer one request, yielding text as it is generated; the last delta holds the finish reason.

        Raises:
            MediaError, DataError: As :meth:`generate`.
        """
        ...

    def open_session(self, query: str = "", *, max_tokens_per_frame: int = 16) -> StreamProtocol:
        """Open a live stream.

        Args:
            query: The viewer's request; empty for none.
            max_tokens_per_frame: Upper bound on the tokens generated after one frame.
        """
        ...


@runtime_checkable
class LoopProtocol(Protocol):
    """The engine's loop, see :class:`casa_core.engine.loop.EngineLoop`. Only ``wake`` may be called by
    another thread than the one that steps."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about model and device, for reports."""
        ...

    def current_load(self) -> LoadSnapshot:
        """What the engine holds at the moment, for metrics."""
        ...

    def warm_up(self) -> float:
        """Compile or record now what would be when it first occurs; the seconds it took."""
        ...

    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
        """Ask for an answer; the number of its events."""
        ...

    def open_stream(self, settings: StreamSettings | None = None) -> int:
        """Open a live stream; the number of its events."""
        ...

    def push_frame(
        self, number: int, image: FrameImage | None, timestamp: float, *, due: float | None = None
    ) -> None:
        """Queue a stream's next frame."""
        ...

    def prompt(self, number: int, query: str) -> None:
        """Ask something further in the middle of a stream."""
        ...

    def depart(self, number: int) -> tuple[SavedSession, list[Outcome]]:
        """Save a stream exactly and end it here; its outcomes that no step has given are with it."""
        ...

    def transcript(self, number: int) -> Transcript:
        """Save a stream approximately."""
        ...

    def restore(self, saved: SavedSession, settings: StreamSettings | None = None) -> int:
        """Continue a stream exactly; the number of its events."""
        ...

    def replay(self, transcript: Transcript, settings: StreamSettings | None = None) -> int:
        """Continue a stream approximately; the number of its events."""
        ...

    def cancel(self, number: int) -> None:
        """End an answer or a stream without further events."""
        ...

    def step(self) -> list[Event]:
        """Advance everything by a step; what has happened."""
        ...

    def wait(self, timeout_s: float | None = None, *, until: Callable[[], bool] | None = None) -> bool:
        """Wait until there is something to do."""
        ...

    def wake(self) -> None:
        """End a ``wait``, from any thread."""
        ...

    def close(self) -> None:
        """End everything."""
        ...
