"""The decoding step gives the logits of the model's own forward: in any company, for any fusion."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.fused_linear import fuse, packed
from casa_core.decoding.kv_batch import KVBatch
from tests.support.core.conversations import conversations, model_of
from tests.support.core.engine import full_logits, pieces
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind

LENGTH = 14
ROWS = range(3)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_words_one_by_one_give_the_logits_of_one_forward_alone(
    fusion: str, backbone: BackboneKind, data: st.DataObject
):
    model = model_of(fusion, backbone)
    wholes = [data.draw(conversations(LENGTH)) for _ in ROWS]
    expected = [full_logits(model, whole) for whole in wholes]
    prompts = [data.draw(st.integers(1, LENGTH - 1)) for _ in ROWS]
    unread = [pieces(whole, range(prompt, LENGTH)) for whole, prompt in zip(wholes, prompts, strict=True)]
    sequences = KVBatch(model, len(ROWS), decode=DecodeStep(copy.deepcopy(model)))
    while any(unread):
        pause = data.draw(st.sampled_from([None, *ROWS]))
        turn = [row for row in ROWS if unread[row] and row != pause]
        if not turn:
            continue
        heard_AV = sequences.extend([unread[row].pop(0) if row in turn else None for row in ROWS])
        for heard_V, row in zip(heard_AV, turn, strict=True):
            told = expected[row][sequences.lengths[row] - 1]
            torch.testing.assert_close(heard_V, told, rtol=0, atol=1e-4)


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)])
def test_fused_layers_give_what_they_gave_one_by_one_and_share_their_weights(biases: tuple[bool, bool]):
    torch.manual_seed(0)
    layers = [nn.Linear(24, size, bias=bias) for size, bias in zip((8, 16), biases, strict=True)]
    x_XC = torch.randn(5, 24)
    expected = torch.cat([layer(x_XC) for layer in layers], dim=1)
    fused = fuse(layers)
    torch.testing.assert_close(fused(x_XC), expected)
    torch.testing.assert_close(torch.cat([layer(x_XC) for layer in layers], dim=1), expected)
    with torch.no_grad():
        fused.weight.zero_()
    assert all(not layer.weight.any() for layer in layers)


@pytest.mark.parametrize("rows", [1, 3, 8, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_packed_layer_gives_what_the_layer_gives(rows: int, dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    linear = nn.Linear(96, 72, dtype=dtype)
    x_XC = torch.randn(rows, 96, dtype=dtype)
    exact = x_XC.double() @ linear.weight.double().T + linear.bias.double()
    with torch.inference_mode():
        found = packed(linear)(x_XC)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
