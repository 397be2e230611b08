"""Questions for the runner: drawn pictures, a source that travels, and a checkpoint that answers anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casa_core.types import Image, Sample, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.worker import Unreadable
from tests.support.core.engine import png

WORDS = ["what", "colour", "is", "shape", "the", "red", "green", "it"]


@dataclass(frozen=True)
class Drawn:
    """Questions about drawn pictures, of different lengths and sizes; every ``unreadable``-th row is none,
    every ``broken``-th picture is cut off. With ``video``, they are about three frames of it."""

    count: int
    unreadable: int = 0
    broken: int = 0
    video: bytes = b""
    max_new_tokens: int = 6

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[Question | Unreadable]:
        for at in range(start, stop):
            if self.unreadable and at % self.unreadable == 1:
                yield Unreadable(id=f"q{at}", reason="The row has no question.")
            else:
                yield Question(id=f"q{at}", sample=self._sample(at), truth=Truth(answers=("red",)))

    def _sample(self, at: int) -> Sample:
        data = png(at, 16 + 8 * (at % 3), 24)
        if self.broken and at % self.broken == 0:
            data = data[:40]
        text = " ".join(WORDS[(at + n) % len(WORDS)] for n in range(2 + at % 7))
        frames = [Image(data=self.video, timestamp=at / 4 + n / 2) for n in range(3 if self.video else 0)]
        shown = frames or [Image(data=data)]
        return Sample(source="drawn", sample_id=f"q{at}", parts=(*shown, Text(role="user", text=text)))


def expected(folder: Path, source: Drawn, max_new_tokens: int) -> dict[str, str]:
    """What each question is answered alone, by the engine in lockstep."""
    from casa_core.engine.engine import Engine
    from casa_core.engine.requests import GenerationRequest, SamplingParams

    engine = Engine.from_pretrained(folder)
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    found = {}
    for one in source.read(0, len(source)):
        if isinstance(one, Question):
            [result] = engine.generate([GenerationRequest(sample=one.sample, sampling=sampling)])
            found[one.id] = result.text
    return found
