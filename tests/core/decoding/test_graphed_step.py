"""Decode steps that are recorded and replayed: the same kernels at the same addresses, and the same logits.

No GPU is needed: a recording here is a list of the operations with the shapes and addresses of their
arguments, and a replay must repeat it word for word, as a CUDA graph would whether it is right or not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.graphed_step import Function, GraphedStep
from casa_core.decoding.kv_batch import KVBatch, Room, TokenChunk
from casa_core.errors import ConfigError
from tests.support.core.conversations import conversations, model_of
from tests.support.core.engine import full_logits, pieces
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind

LENGTH, ROWS = 10, 3
WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}
"""Operations whose result the host waits for, or whose shape depends on it."""


class Operations(TorchDispatchMode):
    """Writes down every operation with the shapes of its tensors, and the addresses of those known before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        tensors = [one for one in flat if isinstance(one, torch.Tensor)]
        lasting = {_storage(one) for one in tensors} - self._made
        shown = [
            (tuple(one.shape), one.data_ptr() if _storage(one) in lasting else None)
            if isinstance(one, torch.Tensor)
            else one
            for one in flat
        ]
        self.seen.append((str(func), *shown))
        result = func(*args, **(kwargs or {}))
        outputs = [one for one in tree_flatten(result)[0] if isinstance(one, torch.Tensor)]
        self._made |= {_storage(one) for one in outputs} - lasting
        return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def record(function: Function) -> tuple[torch.Tensor, Callable[[], None]]:
    """A recording that runs again, and must do then what it did first."""
    with Operations() as first:
        output = function()
    assert not WAITS & {name for name, *_ in first.seen}, "the host would wait for the device"

    def replay() -> None:
        with Operations() as again:
            result = function()
        assert again.seen == first.seen, "a replay repeats shapes and addresses"
        output.copy_(result)

    return output, replay


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
