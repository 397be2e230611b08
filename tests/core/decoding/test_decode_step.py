"""The decoding step gives the logits of the model's own forward: in any company, for any fusion."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from casa_core.decoding import fused_linear
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.fused_linear import Int8Linear, PackedLinear, PlainLinear, Quantize, fuse, ready
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.errors import ConfigError
from tests.support.core.conversations import conversations, model_of
from tests.support.core.engine import full_logits, pieces
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind

LENGTH = 14
ROWS = range(3)
TOKENS = (3, 4, 5)


@pytest.fixture(scope="module", autouse=True)
def everything_packed() -> Iterator[None]:
    """Small layers are packed too: the models of these tests have no large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_linear, "_WORTH_PACKING", 0)
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made, and run without being compiled, which takes seconds for each."""
    monkeypatch.setattr("torch._logging._internal.trace_log", logging.getLogger("unrecorded"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_words_one_by_one(fusion: str, backbone: BackboneKind, data: st.DataObject, **how: Any) -> None:
    """Rows join and pause at will: logits are those of a forward over each row alone."""
    model = model_of(fusion, backbone)
    wholes = [data.draw(conversations(LENGTH)) for _ in ROWS]
    expected = [full_logits(model, whole) for whole in wholes]
    prompts = [data.draw(st.integers(1, LENGTH - 1)) for _ in ROWS]
    unread = [pieces(whole, range(prompt, LENGTH)) for whole, prompt in zip(wholes, prompts, strict=True)]
    sequences = KVBatch(model, len(ROWS), decode=DecodeStep(copy.deepcopy(model), **how))
    while any(unread):
        pause = data.draw(st.sampled_from([None, *ROWS]))
        turn = [row for row in ROWS if unread[row] and row != pause]
        if not turn:
            continue
        heard_AV = sequences.extend([unread[row].pop(0) if row in turn else None for row in ROWS])
        for heard_V, row in zip(heard_AV, turn, strict=True):
            told = expected[row][sequences.lengths[row] - 1]
            torch.testing.assert_close(heard_V, told, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_words_one_by_one_give_the_logits_of_one_forward_alone(
    fusion: str, backbone: BackboneKind, data: st.DataObject
):
    check_words_one_by_one(fusion, backbone, data)


graph_examples = settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("fusion", ["casa"])
@graph_examples
@given(data=st.data())
def test_a_step_as_one_graph_gives_them_too(fusion: str, data: st.DataObject):
    check_words_one_by_one(fusion, "helium", data, compile=True)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(torch.float32, "int8"), (torch.bfloat16, None), (torch.bfloat16, "int8")],
)
def test_a_step_as_one_graph_has_weights_of_any_type(
    rows: int, dtype: torch.dtype, quantize: Quantize | None
):
    model: Any = copy.deepcopy(model_of("casa", "helium")).to(dtype)

    def logits(model: Any, *, compile: bool = False, quantize: Quantize | None = None) -> torch.Tensor:
        step = DecodeStep(copy.deepcopy(model), compile=compile, quantize=quantize)
        sequences = KVBatch(model, rows, decode=step)
        return torch.stack(
            [sequences.extend([TokenChunk([token + row]) for row in range(rows)]) for token in TOKENS]
        )

    graph, eager = (logits(model, compile=compile, quantize=quantize) for compile in (True, False))
    assert graph.dtype == dtype
    # Inputs of int8 weights are bf16 in any model. A graph rounds in other places than single operations do,
    # so neither is the other's reference: the same weights in float32 say how far they may be.
    exact = logits(_rounded_to_int8(model.float()) if quantize else model.float())
    assert 0 < _rms(graph.float() - exact) <= 2 * _rms(eager.float() - exact) < 0.1 * _rms(exact)


def _rounded_to_int8(model: Any) -> Any:
    """The language model with each output's weights on 127 steps of their largest, and that step in bf16."""
    linears = [one for one in model.language_model.layers.modules() if isinstance(one, torch.nn.Linear)]
    for linear in [*linears, model.lm_head]:
        weight_OC = linear.weight.detach()
        step_O1 = weight_OC.abs().amax(1, keepdim=True) / 127
        linear.weight = torch.nn.Parameter((weight_OC / step_O1).round() * step_O1.bfloat16().float())
    return model


def _rms(error: torch.Tensor) -> float:
    return float(error.square().mean().sqrt())


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", [PlainLinear, PackedLinear, Int8Linear])
def test_one_row_in_a_graph_gives_what_the_layer_gives(
    kind: type[nn.Module], dtype: torch.dtype, tolerance: float, bias: bool
):
    torch.manual_seed(0)
    layer = kind(nn.Linear(96, 72, bias=bias, dtype=dtype))
    x_1C = torch.randn(1, 96, dtype=dtype)
    with torch.inference_mode():
        expected = layer(x_1C)
        found = torch.compile(layer, fullgraph=True)(x_1C)
    tolerance = 2e-2 if kind is Int8Linear else tolerance  # its kernel rounds the result to bf16
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("graphs")
def test_compiled_steps_of_two_models_are_kept_apart():
    found = []
    for fusion in ("ca-gated", "insertion"):
        for compile in (True, False):
            model = model_of(fusion, "helium")
            sequences = KVBatch(model, 1, decode=DecodeStep(copy.deepcopy(model), compile=compile))
            found.append([sequences.extend([TokenChunk([token])]) for token in TOKENS])
    for compiled, plain in (found[:2], found[2:]):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
@graph_examples
@given(data=st.data())
def test_every_step_is_one_graph(fusion: str, backbone: BackboneKind, data: st.DataObject):
    check_words_one_by_one(fusion, backbone, data, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["ca", "casa"])
@settings(max_examples=1, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_compiled_step_gives_them_too(fusion: str, data: st.DataObject):
    check_words_one_by_one(fusion, "helium", data, compile=True)


def test_a_step_cannot_be_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = model_of("ca", "helium")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler here"):
        DecodeStep(copy.deepcopy(model), compile=True)
    DecodeStep(copy.deepcopy(model), compile="auto")


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_gives_what_the_rounded_weights_give(rows: int, bias: bool):
    torch.manual_seed(0)
    linear = nn.Linear(96, 50, bias=bias)
    x_XC = torch.randn(rows, 96)
    weight = linear.weight.detach()
    step = weight.abs().amax(1, keepdim=True) / 127
    exact = x_XC @ ((weight / step).round() * step).T + (linear.bias.detach() if bias else 0)
    with torch.inference_mode():
        found = ready(linear, "int8")(x_XC)
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)
    assert found.dtype == torch.float32


def test_a_layer_whose_width_the_int8_kernel_would_read_beyond_stays_as_it_is():
    linear = nn.Linear(48, 64)
    with torch.inference_mode():
        x_XC = torch.randn(3, 48)
        torch.testing.assert_close(ready(linear, "int8")(x_XC), linear(x_XC))


def test_weights_are_quantized_where_there_is_a_kernel_only(monkeypatch: pytest.MonkeyPatch):
    linear: Any = nn.Linear(32, 32)
    with pytest.raises(ConfigError, match="cannot be quantized to 'int3'"):
        ready(linear, cast(Any, "int3"))
    with pytest.raises(ConfigError, match="asked for on a device of type meta"):
        ready(linear.to("meta"), "int8")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(ConfigError, match="without vector units"):
        ready(nn.Linear(32, 32), "int8")


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_may_stand_in_a_graph(dtype: torch.dtype):
    torch.manual_seed(0)
    layer = PackedLinear(nn.Linear(96, 72, dtype=dtype))
    x_XC = torch.randn(3, 96, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x_XC), layer(x_XC), rtol=0, atol=0)


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
        found = PackedLinear(linear)(x_XC)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
