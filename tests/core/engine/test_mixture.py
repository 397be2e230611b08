"""Whatever else an engine does, each answer and each stream says what it says alone."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.engine.engine import Engine
from casa_core.engine.settings import EngineSettings
from tests.core.engine.test_session_fusions import BACKBONES, FUSIONS, IN_TURN, bounds_of, engine_of
from tests.support.core.family import BackboneKind
from tests.support.core.mixture import Mixture, alone

SMALL = EngineSettings(slots=5, answer_slots=2, queued_frames=2, prefill_tokens=24, image_cache_tokens=64)


def check(name: str, backbone: BackboneKind, chance: random.Random, count: int) -> Mixture:
    known = engine_of(name, backbone)

    def fresh(own: EngineSettings) -> Engine:
        return Engine(known.model, known.processor, own)

    mixture = Mixture([fresh(SMALL), fresh(SMALL)], chance, bounds_of(known))
    mixture.run(count)
    for one in mixture.all:
        alone(one, lambda: fresh(EngineSettings(slots=1, answer_slots=0, image_cache_tokens=0)))
    return mixture


@pytest.mark.parametrize(("name", "backbone"), IN_TURN)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_few_that_join_leave_and_move_say_what_each_says_alone(name: str, backbone: BackboneKind, seed: int):
    check(name, backbone, random.Random(seed), 6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backbone"), list(product(FUSIONS, BACKBONES)))
def test_two_hundred_that_join_leave_and_move_say_what_each_says_alone(name: str, backbone: BackboneKind):
    mixture = check(name, backbone, random.Random(name + backbone), 200)
    captions = [caption for one in mixture.all for caption in one.captions]
    interrupted = sum(caption.truncated and len(caption.token_ids) < 4 for caption in captions)
    happened = {
        "answers": sum(one.result is not None for one in mixture.all),
        "captions": len(captions),
        "answers to prompts": sum(caption.prompt is not None for caption in captions),
        "interrupted": interrupted,
        "dropped frames": sum(one.dropped for one in mixture.all),
        "moves": sum(one.moves for one in mixture.all),
        "cached tokens": sum(engine.load.cached_tokens for engine in mixture.engines),
    }
    if name in ("insertion", "qformer"):  # only a whole conversation can be continued, and none of these is
        del happened["cached tokens"]
    assert all(happened.values()), happened
