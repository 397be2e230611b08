"""Where the processor time of a frame and of a decode step goes: matrix products, or all around them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from benchmarks.measure import table
from benchmarks.models import Size, film, small_engine
from casa_core.backbones import text_attention
from casa_core.decoding import kv_batch as cache
from casa_core.engine.engine import Engine
from casa_core.engine.requests import SamplingParams, StreamSettings
from casa_core.engine.settings import EngineSettings
from casa_core.engine.slot_pool import Chosen, SlotPool
from casa_core.fusion import backends
from casa_core.fusion.config import FusionConfig, FusionKind

KINDS: tuple[FusionKind, ...] = ("cross_attention", "casa")
WORDS = 4
REST = "the rest of the layers: element by element, and Python"


class _Clock:
    """Processor seconds of this step by part; a part inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time put down to ``part``."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                taken = time.thread_time() - began
                own = taken - self._inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                if self._inner:
                    self._inner[-1] += taken

        return run


@contextmanager
def _watched(slots: SlotPool, clock: _Clock) -> Iterator[None]:
    """Put the clock around the parts of a step."""
    model, products = slots.model, "matrix products and attention"
    places: list[tuple[object, str, str]] = [
        (functional, "linear", products),
        (text_attention, "scaled_dot_product_attention", products),
        (backends, "scaled_dot_product_attention", products),
        (cache, "plan_forward", "planning: windows, positions, masks"),
        (model, "_fusion_state", "segments and rotary angles of the windows"),
        (cache.KVBatch, "_advance", "what sequences remember"),
        (type(slots._sampler), "choose_some", "choosing the token"),
        (type(slots._sampler), "read_some", "choosing the token"),
        (model, "embed_images", "vision tower, matrix products apart"),
        (model, "_run", REST),
        (SlotPool, "run", "around the model"),
    ]
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        yield


def run(size: Size, frames: int) -> tuple[dict[str, Any], str]:
    """Medians over the frames of a stream: numbers, and a table for people."""
    payload, text = {}, ""
    for kind in KINDS:
        bare, steps = _measure(size, kind, frames)
        for name, parts in steps.items():
            whole = sum(parts.values())
            rows = [
                [part, f"{value * 1e3:.2f}", f"{value / whole:.0%}"]
                for part, value in sorted(parts.items(), key=lambda item: -item[1])
            ]
            rows.append(["in all", f"{whole * 1e3:.2f}", f"unwatched {bare[name] * 1e3:.2f}"])
            text += f"## {kind}: {name}\n\n" + table(["part", "CPU ms", "share"], rows) + "\n"
            payload[f"{kind}: {name}"] = {
                "milliseconds": {part: round(value * 1e3, 4) for part, value in parts.items()},
                "unwatched_ms": round(bare[name] * 1e3, 4),
            }
    return payload, text


def _measure(
    size: Size, kind: FusionKind, frames: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Processor seconds of a frame's first step and of the others: in all unwatched, and by part."""
    known = small_engine(size, FusionConfig(kind=kind))
    one = EngineSettings(slots=1, answer_slots=0, image_cache_tokens=0)
    engine = Engine(known.model, known.processor, one)
    slots = engine._slots
    slots.sequences.decode = None  # the parts of a step are those of the model's own layers
    session = engine.open_session(
        settings=StreamSettings(
            max_tokens_per_frame=WORDS, sampling=SamplingParams(stop_bias=-1e9), bounds=None
        )
    )
    pictures, taken = film(size.side, seed=1), {"a frame's first step": [], "a decode step": []}
    names, clock = list(taken), _Clock()
    watched: dict[str, list[dict[str, float]]] = {name: [] for name in names}

    def recorded(extensions: Any, choose: Any = None) -> Chosen:
        name = names[0] if any(extension.grids for extension in extensions.values()) else names[1]
        clock.seconds = {}
        began = time.thread_time()
        tokens = SlotPool.run(slots, extensions, choose)
        taken[name].append(time.thread_time() - began)
        watched[name].append(clock.seconds)
        return tokens

    with patch.object(slots, "run", recorded), torch.inference_mode():
        for number in range(frames):
            session.push_frame(next(pictures), number / 2)
        bare = {name: statistics.median(values[len(values) // 5 :]) for name, values in taken.items()}
        watched |= {name: [] for name in names}
        with _watched(slots, clock):
            for number in range(frames):
                session.push_frame(next(pictures), number / 2)
    return bare, {name: _medians(steps) for name, steps in watched.items()}


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    parts = {part for step in steps for part in step}
    return {part: statistics.median(step.get(part, 0.0) for step in steps) for part in parts}
