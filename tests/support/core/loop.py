"""Engines of one small model with other settings, and what comes out of their steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine import image_encoder
from casa_core.engine.engine import Engine
from casa_core.engine.events import Event, Outcome
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.engine.settings import EngineSettings
from casa_core.types import Image, Part, Sample, Text


def fresh(known: Engine, **settings: Any) -> Engine:
    """Another engine of the same model."""
    return Engine(known.model, known.processor, EngineSettings(**settings))


def asked(*parts: Part | str | bytes, **sampling: Any) -> GenerationRequest:
    """A request: texts of the user, and pictures."""
    made: list[Part] = []
    for part in parts:
        match part:
            case str():
                made.append(Text(role="user", text=part))
            case bytes():
                made.append(Image(data=part))
            case _:
                made.append(part)
    sample = Sample(source="test", sample_id="1", parts=tuple(made))
    return GenerationRequest(sample=sample, sampling=SamplingParams(**{"max_new_tokens": 4, **sampling}))


def words(count: int) -> str:
    """A text of about so many tokens, at least."""
    return "red " * count


def until(engine: Engine, done: Callable[[list[Event]], bool], seconds: float = 20.0) -> list[Event]:
    """Step until the events so far are enough."""
    events: list[Event] = []
    end = time.monotonic() + seconds
    while not done(events):
        assert time.monotonic() < end, f"nothing came after {events}"
        engine.wait(0.02)
        events += engine.step()
    return events


def idle(engine: Engine) -> list[Event]:
    """Step until nothing is to be done."""
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def of(events: Sequence[Event], number: int) -> list[Outcome]:
    return [event.outcome for event in events if event.sequence == number]


@contextmanager
def embedded() -> Iterator[list[list[tuple[int, int]]]]:
    """The grids of the images of each call of a vision tower."""
    calls: list[list[tuple[int, int]]] = []
    original = image_encoder.embed

    def embed(images: Any, model: Any, tower: Any) -> Any:
        calls.append([grid for _, grid in images])
        return original(images, model, tower)

    with patch.object(image_encoder, "embed", embed):
        yield calls


@contextmanager
def forwards() -> Iterator[list[dict[int, int]]]:
    """Slot → tokens read, images included, of each forward."""
    read: list[dict[int, int]] = []
    original = KVBatch.extend

    def extend(batch: KVBatch, rows: Sequence[TokenChunk | None]) -> Any:
        read.append({slot: chunk.cost for slot, chunk in enumerate(rows) if chunk is not None})
        return original(batch, rows)

    with patch.object(KVBatch, "extend", extend):
        yield read
