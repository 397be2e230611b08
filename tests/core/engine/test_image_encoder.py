"""Images are prepared and embedded in threads; what is due first does not wait for what takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core.decoding.plan import TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.image_encoder import ImageEncoder
from casa_core.engine.inputs import frame_chunk
from casa_core.engine.load import Load
from tests.support.core.engine import picture


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def encoder(engine: Engine) -> Iterator[ImageEncoder]:
    encoder = ImageEncoder(
        engine.model, cache_tokens=0, batch=4, threads=True, load=Load(), wake=lambda: None
    )
    yield encoder
    encoder.close()


def test_a_frame_is_ready_while_huge_pictures_of_answers_are_prepared(engine: Engine, encoder: ImageEncoder):
    decoded = threading.Event()

    def huge() -> TokenChunk:
        assert decoded.wait(30)
        return TokenChunk([1])

    answers = [encoder.encode(huge, due=0.0, live=False) for _ in range(20)]

    def frame() -> TokenChunk:
        return frame_chunk(picture(1), engine.processor, images_withheld=False)

    ready = encoder.encode(frame, due=1.0, live=True).result(timeout=20)
    assert len(ready.chunk.features_NC) == 1
    assert not any(answer.done() for answer in answers)
    decoded.set()
    assert all(answer.result(timeout=20).chunk.ids == [1] for answer in answers)
