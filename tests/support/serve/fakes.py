"""A hand-written engine that is deterministic, looks at the pixels, and can be made to fail or to be slow.

Its answers name what it saw, so that a test notices a mixed-up image, session or batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent, GenerationDelta, GenerationRequest, GenerationResult
from casa_core.errors import ConfigError, DataError
from casa_core.media.decode import decode_image
from casa_core.types import Image, Text

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 60, 220),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "yellow": (230, 220, 30),
}
IMAGE_TOKENS = 64


def colour_of(image: FrameImage) -> str:
    """The name of the colour nearest to the picture's mean."""
    pixels = decode_image(image) if isinstance(image, bytes) else image
    mean = pixels.reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - np.array(COLOURS[name])).sum()))


class FakeEngine:
    """Answers with the colours of the pictures, then the last user text, one word a token.

    A text containing `explode` raises, one containing `too long` is refused as a user's error.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.open_sessions = 0
        self.closed_streams = 0
        self.produced = 0

    @classmethod
    def from_pretrained(cls, folder: Path) -> FakeEngine:
        """As the real engine is loaded; the folder must exist."""
        if not Path(folder).is_dir():
            raise ConfigError(f"no checkpoint at {folder}")
        return cls()

    @property
    def info(self) -> dict[str, Any]:
        return {"blind": False}

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        self._enter()
        self.batches.append(len(requests))
        return [self._result(request) for request in requests]

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        result = self._result(request)
        words = result.text.split(" ")
        try:
            for number, word in enumerate(words):
                self._enter()
                if word == "midway!":
                    raise RuntimeError("the engine broke in the middle")
                self.produced += 1
                last = number == len(words) - 1
                yield GenerationDelta(
                    text=word if number == 0 else f" {word}",
                    finish_reason=result.finish_reason if last else None,
                    prompt_tokens=result.prompt_tokens,
                    image_tokens=result.image_tokens,
                    completion_tokens=number + 1,
                )
        finally:
            self.closed_streams += 1

    def open_session(self, query: str = "", *, max_tokens_per_frame: int = 16) -> FakeSession:
        self._enter()
        self.open_sessions += 1
        return FakeSession(self, query, max_tokens_per_frame)

    def _enter(self) -> None:
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s)

    def _result(self, request: GenerationRequest) -> GenerationResult:
        texts = [part.text for part in request.sample.parts if isinstance(part, Text)]
        pictures = [part.data for part in request.sample.parts if isinstance(part, Image)]
        question = texts[-1] if texts else ""
        if "explode" in question:
            raise RuntimeError("the engine exploded, and this text must not reach the client")
        if "too long" in question:
            raise ConfigError("the conversation is too long", "it has 9000 tokens", "shorten it")
        words = [*(colour_of(data) for data in pictures if data is not None), *question.split()]
        if request.sampling.temperature > 0:
            words.append(f"seed={request.sampling.seed}")
        for stop in request.sampling.stop:
            words = " ".join(words).split(stop)[0].split()
        kept = words[: request.sampling.max_new_tokens]
        return GenerationResult(
            request_id=request.request_id,
            text=" ".join(kept),
            token_ids=tuple(range(len(kept))),
            finish_reason="stop" if kept == words else "length",
            prompt_tokens=sum(len(text.split()) for text in texts),
            image_tokens=IMAGE_TOKENS * len(pictures),
            completion_tokens=len(kept),
        )


class FakeSession:
    """Captions a change of colour: `<query> <colour> <number of frames so far>`; silent otherwise."""

    def __init__(self, engine: FakeEngine, query: str, limit: int) -> None:
        self._engine = engine
        self._query = query
        self._limit = limit
        self._last = ""
        self._frames = 0
        self.text_tokens = len(query.split())

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        self._engine._enter()
        if self._query == "explode":
            raise RuntimeError("the engine exploded, and this text must not reach the client")
        if self._query == "short memory" and self._frames == 2:
            raise DataError("the stream's text has reached the context", "8 tokens", "open a new session")
        started = time.perf_counter()
        assert image is not None
        colour = colour_of(image)
        self._frames += 1
        words = [] if colour == self._last else [*self._query.split(), colour, str(self._frames)]
        self._last = colour
        kept = words[: self._limit]
        self.text_tokens += len(kept) + 1
        return CaptionEvent(
            timestamp=timestamp,
            text=" ".join(kept),
            token_ids=tuple(range(len(kept))),
            latency_s=time.perf_counter() - started,
            text_tokens=self.text_tokens,
            truncated=len(kept) < len(words),
        )

    def close(self) -> None:
        self._engine.open_sessions -= 1
