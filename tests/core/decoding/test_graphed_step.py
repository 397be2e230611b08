"""Decode steps that are recorded and replayed: the same kernels at the same addresses, and the same logits.

No GPU is needed: see :mod:`tests.support.core.recording`.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.graphed_step import GraphedStep
from casa_core.decoding.kv_batch import KVBatch, Room, TokenChunk
from casa_core.errors import ConfigError
from tests.support.core.conversations import conversations, model_of
from tests.support.core.engine import full_logits, pieces
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind
from tests.support.core.recording import record

LENGTH, ROWS = 10, 3


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", FUSIONS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(data=st.data())
def test_rows_that_join_and_pause_have_the_logits_of_a_forward_over_each_alone(
    fusion: str, backbone: BackboneKind, data: st.DataObject
):
    model = model_of(fusion, backbone)
    wholes = [data.draw(conversations(LENGTH)) for _ in range(ROWS)]
    expected = [full_logits(model, whole) for whole in wholes]
    prompts = [data.draw(st.integers(1, LENGTH - 1)) for _ in wholes]
    unread = [pieces(whole, range(prompt, LENGTH)) for whole, prompt in zip(wholes, prompts, strict=True)]
    step = GraphedStep(DecodeStep(copy.deepcopy(model)), record)
    sequences = KVBatch(model, ROWS, room=Room(text=64, image_tokens=64, window_text=64), decode=step)
    while any(unread):
        pause = data.draw(st.sampled_from([None, *range(ROWS)]))
        turn = [row for row in range(ROWS) if unread[row] and row != pause]
        if not turn:
            continue
        logits_AV = sequences.extend([unread[row].pop(0) if row in turn else None for row in range(ROWS)])
        for row, logits_V in zip(turn, logits_AV, strict=True):
            end = sequences.lengths[row]
            torch.testing.assert_close(logits_V, expected[row][end - 1], rtol=0, atol=1e-4)


def test_a_few_buckets_hold_every_step_and_are_recorded_again_only_where_a_cache_has_moved():
    model = model_of("casa", "helium")
    step = GraphedStep(DecodeStep(copy.deepcopy(model)), record)
    sequences = KVBatch(model, 4, decode=step)
    ids = [[1 + row] for row in range(4)]
    sequences.extend([TokenChunk(one) for one in ids])
    for _ in range(50):
        sequences.extend([TokenChunk(one) for one in ids])
    assert step.recorded <= 7, "entries double: 2, 4, 8, 16, 32, 64"
    before = step.recorded
    for _ in range(30):
        sequences.extend([TokenChunk(one) for one in ids])
    assert step.recorded < before, "the text KV has grown beyond its first block, and all were forgotten"


def test_without_a_cuda_device_graphs_are_refused_with_the_reason():
    step = DecodeStep(copy.deepcopy(model_of("casa", "helium")))
    with pytest.raises(ConfigError, match="not on a CUDA device") as caught:
        GraphedStep(step)
    assert "It is on cpu" in caught.value.why


def test_graphs_of_compiled_steps_are_refused():
    step = DecodeStep(copy.deepcopy(model_of("casa", "helium")), compile="auto")
    if not step.is_compiled:
        pytest.skip("there is no compiler here")
    with pytest.raises(ConfigError, match="either `graphs` or `compile`"):
        GraphedStep(step, record)
