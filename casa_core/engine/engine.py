"""The inference engine in lockstep: batched answers, and live streams whose words are waited for."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from casa_core.engine.events import Event, Failed, FrameRefused
from casa_core.engine.live_stream import LiveStream
from casa_core.engine.loop import EngineLoop
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    StreamSettings,
)
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.engine.settings import EngineSettings
from casa_core.errors import DataError
from casa_core.weights.checkpoint import load_checkpoint


class StreamSession:
    """One live stream (:class:`casa_core.engine.protocol.StreamProtocol`) of an engine's loop.

    Args:
        number: Of ``EngineLoop.open_stream``, ``restore`` or ``replay``.
    """

    def __init__(self, loop: EngineLoop, number: int) -> None:
        self._loop = loop
        self._number = number
        self._stream: LiveStream | None = loop.stream_state(number)
        # A session that is forgotten gives its slot back, as a closed one does.
        self._forgotten = weakref.finalize(self, loop.forget, number)

    @property
    def text_tokens(self) -> int:
        """Text tokens in the KV cache."""
        return 0 if self._stream is None else len(self._loop.settled(self._number).ids)

    @property
    def kv_tokens(self) -> int:
        """All tokens in the text KV cache: for insertion image tokens are among them."""
        return 0 if self._stream is None else self._loop.kv_tokens(self._number)

    @property
    def image_tokens(self) -> int:
        """Image tokens in the window cache: the latest frame's."""
        return 0 if self._stream is None else self._loop.image_tokens(self._number)

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        """Read the next frame and generate the words that follow it; see ``StreamProtocol.push_frame``."""
        self._open()
        self._loop.push_frame(self._number, image, timestamp)
        return self._caption()

    def prompt(self, query: str) -> CaptionEvent:
        """Ask something further about the latest frame, and wait for the answer.

        Raises:
            DataError: If the stream is closed, or the prompt is too long.
        """
        self._open()
        self._loop.prompt(self._number, query)
        return self._caption()

    def save(self) -> SavedSession:
        """An exact snapshot, as ``EngineLoop.save``."""
        self._open()
        return self._loop.save(self._number)

    def transcript(self) -> Transcript:
        """An approximate snapshot, as ``EngineLoop.transcript``."""
        self._open()
        return self._loop.transcript(self._number)

    def close(self) -> None:
        """Free the stream's slot; closing twice is harmless."""
        if self._forgotten.detach() is not None:
            self._loop.cancel(self._number)
        self._stream = None

    def _caption(self) -> CaptionEvent:
        """Step until nothing of the stream is left to read or to say: its last caption."""
        stream = self._open()
        last: CaptionEvent | None = None
        while last is None or stream.words or stream.waiting or stream.prompts:
            for event in self._loop.events_of((self._number,)):
                match event.outcome:
                    case CaptionEvent() as caption:
                        last = caption
                    case FrameRefused(_, error) | Failed(error):
                        raise error
                    case _:
                        pass
            self._loop.stream_state(self._number)
        return last

    def _open(self) -> LiveStream:
        if self._stream is None:
            raise DataError(
                "The session is closed.", "It was closed before this call.", "Open a new session."
            )
        return self._stream


class Engine(EngineLoop):
    """Generates answers and live captions with one model.

    Serving runs its loop (:class:`casa_core.engine.loop.EngineLoop`). Evaluation and scripts call it in
    lockstep, by the methods below: they step the loop until what they asked for is there
    (:class:`casa_core.engine.protocol.EngineProtocol`).
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        settings: EngineSettings | None = None,
        **decode: Any,
    ) -> Engine:
        """Load a checkpoint folder.

        Args:
            folder: As written by training.
            device: ``auto`` takes a GPU if there is one.
            dtype: Type of the weights; as stored by default.
            settings: The engine's size and shares.
            decode: Keywords of :class:`casa_core.decoding.decode_step.DecodeStep`: ``compile``, ``quantize``.

        Raises:
            StoreError: If the folder is not a checkpoint.
            ConfigError: If what ``decode`` needs is missing here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor = load_checkpoint(folder)
        model.to(device=torch.device(device), dtype=dtype or model.dtype)  # pyright: ignore[reportCallIssue]
        return cls(model, processor, settings, **decode)

    @property
    def info(self) -> dict[str, Any]:
        """Facts about model and device, for model listings, reports and health checks."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fusion": dict(self.model.config.fusion),
            "backbone": self.model.config.text_config.model_type,
            "template": self.processor.template,
            "max_side": self.processor.max_side,
            "context": self.context,
            "blind": self.model.config.images_withheld,
            "device": str(self.model.device),
        }

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answer requests together, in their order; errors as in ``EngineProtocol.generate``."""
        asked = deque(enumerate(requests))
        running: dict[int, int] = {}
        results: dict[int, GenerationResult] = {}
        try:
            while len(results) < len(requests):
                while asked and (self.room_for_answer or not running):
                    place, request = asked.popleft()
                    running[self.submit(request)] = place
                for event in self._outcomes(running):
                    assert isinstance(event.outcome, GenerationResult)
                    results[running.pop(event.sequence)] = event.outcome
        finally:
            for number in running:
                self.cancel(number)
        return [results[place] for place in range(len(requests))]

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        """Answer one request, yielding text as it is generated; errors as :meth:`generate`."""
        number = self.submit(request, streamed=True)
        try:
            while True:
                for event in self._outcomes((number,)):
                    if isinstance(event.outcome, GenerationResult):
                        return
                    assert isinstance(event.outcome, GenerationDelta)
                    yield event.outcome
        finally:
            # Not `cancel`: a generator that is not read to its end ends wherever it is forgotten.
            self.forget(number)

    def open_session(
        self, query: str = "", *, max_tokens_per_frame: int = 16, settings: StreamSettings | None = None
    ) -> StreamSession:
        """Open a live stream in lockstep.

        Args:
            query, max_tokens_per_frame: As in :class:`StreamSettings`.
            settings: All settings, instead of these two.

        Raises:
            Overloaded, ConfigError, DataError: As :meth:`open_stream`.
        """
        own = StreamSettings(query=query, max_tokens_per_frame=max_tokens_per_frame)
        return StreamSession(self, self.open_stream(settings or own))

    def restore_session(self, saved: SavedSession) -> StreamSession:
        """Continue a saved session with the same tokens; errors as :meth:`restore`."""
        return StreamSession(self, self.restore(saved))

    def replay_session(self, transcript: Transcript, settings: StreamSettings | None = None) -> StreamSession:
        """Continue a transcript approximately: its text and latest frame are read again."""
        return StreamSession(self, self.replay(transcript, settings))

    def _outcomes(self, numbers: Sequence[int] | dict[int, int]) -> list[Event]:
        """The events of a step; the first error among them is raised."""
        events = self.events_of(numbers)
        for event in events:
            if isinstance(event.outcome, Failed):
                raise event.outcome.error
        if not events and not any(number in self._steps.running for number in numbers):
            raise DataError(
                "The answer was cancelled.", "The engine was closed, or it was cancelled.", "Ask again."
            )
        return events
