"""The inference engine: batched answers and live streams from one checkpoint, for evaluation and serving."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from casa_core.engine.events import Event, Failed
from casa_core.engine.live_stream import StreamSettings
from casa_core.engine.loop import EngineLoop
from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.engine.session import StreamSession
from casa_core.engine.settings import EngineSettings
from casa_core.errors import DataError
from casa_core.weights.checkpoint import load_checkpoint


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
