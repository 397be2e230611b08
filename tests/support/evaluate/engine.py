"""A hand-written engine that knows colours and nothing else: right on some questions, wrong on others."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PILImage

from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent, GenerationDelta, GenerationRequest, GenerationResult
from casa_core.types import Image, Text
from pipelines.data.generate.shapes import COLORS


def colour_of(pixels: np.ndarray) -> str | None:
    """The palette's colour that most pixels are close to; ``None`` for a bare ground."""
    flat = pixels.reshape(-1, 3).astype(int)
    near = {name: int((np.abs(flat - np.array(rgb)).max(axis=1) < 60).sum()) for name, rgb in COLORS.items()}
    best = max(near, key=lambda name: near[name])
    return best if near[best] >= 20 else None


class ColourEngine:
    """Names the colour of a picture, calls every shape a circle and says yes to every yes/no question.

    Args:
        blind: Answers without looking, and refuses pictures.
    """

    def __init__(self, *, blind: bool = False) -> None:
        self.blind = blind
        self.batches: list[int] = []
        self.sessions: list[ColourStream] = []

    @property
    def info(self) -> Mapping[str, Any]:
        return {"blind": self.blind}

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        self.batches.append(len(requests))
        return [
            GenerationResult(
                request_id=request.request_id,
                text=self._answer(request),
                token_ids=(),
                finish_reason="stop",
                prompt_tokens=0,
                image_tokens=0,
                completion_tokens=0,
            )
            for request in requests
        ]

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        yield GenerationDelta(text=self._answer(request), finish_reason="stop")

    def open_session(self, query: str = "", *, max_tokens_per_frame: int = 16) -> ColourStream:
        self.sessions.append(ColourStream(self.blind))
        return self.sessions[-1]

    def _answer(self, request: GenerationRequest) -> str:
        parts = request.sample.parts
        question = [part.text for part in parts if isinstance(part, Text)][-1]
        images = [part for part in parts if isinstance(part, Image)]
        if "shape" in question:
            return "Circle."
        if "color" not in question:
            return "yes"
        if self.blind:
            return "red"
        assert images[0].data is not None
        return colour_of(np.asarray(PILImage.open(io.BytesIO(images[0].data)).convert("RGB"))) or "white"


class ColourStream:
    """Captions "a <colour> circle" whenever another colour comes into view; blind, nothing but "a"."""

    text_tokens = 1

    def __init__(self, blind: bool) -> None:
        self.blind = blind
        self.closed = False
        self._seen: str | None = None

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        words = ""
        if self.blind:
            assert image is None, "a blind model is not to be shown anything"
            words = "a" if timestamp == int(timestamp) else ""
        else:
            assert isinstance(image, np.ndarray)
            colour = colour_of(image)
            if colour is not None and colour != self._seen:
                words = f"a {colour} circle"
            self._seen = colour or self._seen
        return CaptionEvent(
            timestamp=timestamp, text=words, token_ids=(), latency_s=0.01, text_tokens=self.text_tokens
        )

    def close(self) -> None:
        self.closed = True
