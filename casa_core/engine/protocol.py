"""The engine interface that evaluation, serving and the fakes of the tests share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from casa_core.engine.requests import CaptionEvent, GenerationDelta, GenerationRequest, GenerationResult

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
    """Batched answers, streamed answers and live streams of one model. Calls are not thread-safe."""

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
