"""Compiled decode steps: an engine that has warmed up compiles nothing when answers and streams come."""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from casa_core.engine.engine import Engine
from casa_core.engine.settings import EngineSettings
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked


@pytest.fixture
def compiled(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Its graphs are made, and run without machine code."""
    monkeypatch.setattr("torch._logging._internal.trace_log", logging.getLogger("unrecorded"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    return Engine.from_pretrained(
        tiny_checkpoint, device="cpu", settings=EngineSettings(slots=4, answer_slots=2), compile=True
    )


def graphs() -> int:
    """How many graphs have been made."""
    return counters["stats"]["unique_graphs"]


def run_everything(engine: Engine) -> list[tuple[int, ...]]:
    """Answers alone and together, with pictures and without, while a stream runs."""
    together = [asked(png(1), "what is it"), asked("is it red"), asked(png(2), "is it")]
    tokens = [engine.generate([one])[0].token_ids for one in together[:2]]
    session = engine.open_session("what colour", max_tokens_per_frame=4)
    for number in range(3):
        tokens.append(session.push_frame(picture(number), float(number)).token_ids)
        tokens += [result.token_ids for result in engine.generate(together)]
    session.close()
    return tokens


def test_nothing_is_compiled_after_the_warm_up_and_the_words_are_the_same(compiled: Engine):
    plain = Engine(copy.deepcopy(compiled.model), compiled.processor, compiled.settings)
    assert compiled.warm_up() > 0
    made = graphs()
    assert made >= 8, "one sequence or several, the first slots or others, in windows or not"
    assert run_everything(compiled) == run_everything(plain)
    assert graphs() == made


@pytest.mark.parametrize("size", [1, 3])
def test_the_warm_up_leaves_every_slot_free_and_empty(tiny_checkpoint: Path, size: int):
    engine = Engine.from_pretrained(
        tiny_checkpoint, device="cpu", settings=EngineSettings(slots=size, answer_slots=1)
    )
    engine.warm_up()
    slots = engine._slots
    assert slots.free_slots == slots.size
    assert not slots.warm_slots
    assert [slots.kv_length(slot) for slot in range(slots.size)] == [0] * slots.size
