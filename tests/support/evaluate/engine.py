"""A hand-written model that knows colours and nothing else: right on some questions, wrong on others."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image as PILImage

from casa_core.media.decode import decode_images
from casa_core.types import Image, Sample
from pipelines.data.generate.shapes import COLORS
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.watching import prompt_text


def colour_of(pixels: np.ndarray) -> str | None:
    """The palette's colour that most pixels are close to; ``None`` for a bare ground."""
    flat = pixels.reshape(-1, 3).astype(int)
    near = {name: int((np.abs(flat - np.array(rgb)).max(axis=1) < 60).sum()) for name, rgb in COLORS.items()}
    best = max(near, key=lambda name: near[name])
    return best if near[best] >= 20 else None


def answered_by_colour(sources: Mapping[str, HeldOut], *, blind: bool = False) -> list[dict[str, Any]]:
    """What the runner would give for a model that names the colour of a picture, calls every shape a circle
    and says yes to every yes/no question; blind, it says red. Of a clip it says "a <colour> circle" whenever
    another colour comes into view; blind, nothing but "a"."""
    return [
        {
            "benchmark": name,
            "index": index,
            "question_id": question.id,
            "category": question.truth.category,
            "prompt": prompt_text(question.sample),
            "truths": list(question.truth.answers),
            "finish_reason": "stop",
            "error": "",
            "reused": False,
            "prompt_tokens": 0,
            "image_tokens": 0,
            "completion_tokens": 0,
            **_answer(question.sample, blind=blind),
        }
        for name, source in sources.items()
        for index, question in enumerate(source.read(0, len(source)))
    ]


def _answer(sample: Sample, *, blind: bool) -> dict[str, Any]:
    if is_stream(sample):
        captions = list(_captions(sample, blind=blind))
        words = " ".join(caption["text"] for caption in captions if caption["text"])
        return {"answer": words, "captions": captions}
    question = prompt_text(sample)
    if "shape" in question:
        return {"answer": "Circle."}
    if "color" not in question:
        return {"answer": "yes"}
    [picture] = (part for part in sample.parts if isinstance(part, Image))
    assert picture.data is not None
    pixels = np.asarray(PILImage.open(io.BytesIO(picture.data)).convert("RGB"))
    return {"answer": "red" if blind else colour_of(pixels) or "white"}


def _captions(sample: Sample, *, blind: bool) -> Iterator[dict[str, Any]]:
    seen: str | None = None
    frames = (part for part in sample.parts if isinstance(part, Image))
    for frame, pixels in zip(frames, decode_images(sample), strict=True):
        assert frame.timestamp is not None
        colour = colour_of(pixels)
        words = f"a {colour} circle" if colour is not None and colour != seen else ""
        seen = colour or seen
        if blind:
            words = "a" if frame.timestamp == int(frame.timestamp) else ""
        yield {"timestamp": frame.timestamp, "text": words, "truncated": False}
