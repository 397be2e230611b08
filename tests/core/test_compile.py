"""Users may compile the model: forward, training and ``generate()`` give what they give uncompiled."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from casa_core.inputs import ImageInputs, Packing
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import FUSIONS, TowerKind, patch_values, small_casa


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs of other tests; and no record of all compiling, which pytest would have torch write."""
    monkeypatch.setattr("torch._logging._internal.trace_log", logging.getLogger("unrecorded"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(compiled: Any, eager: CasaForConditionalGeneration, tower: TowerKind, tolerance: float) -> None:
    """Logits, gradients and generated tokens of a padded batch; logits of a packed one."""
    patches_PE = torch.randn(12, patch_values(tower), generator=torch.Generator().manual_seed(0))
    padded = {
        "input_ids": torch.tensor([[3, 4, 5, 6, 7], [0, 0, 8, 9, 10]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
        "pixel_values": patches_PE,
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 4, 2]]),
        "image_counts": torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]),
    }
    outputs = [model(**padded, labels=padded["input_ids"]) for model in (compiled, eager)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=tolerance)
    for output in outputs:
        output.loss.backward()
    for (name, found), expected in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=tolerance)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    tokens = [model.generate(**padded, **settings, pad_token_id=0).tolist() for model in (compiled, eager)]
    assert tokens[0] == tokens[1]
    planned = {
        "packing": Packing(
            document_starts=[0, 4],
            image_positions=[1, 5],
            image_tokens=[1, 2],
            image_grids=[(1, 1), (2, 1)],
        ),
        "images": ImageInputs(patches_PE, [(2, 2), (4, 2)]),
    }
    ids_1T = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    packed = [model(ids_1T, **planned).logits for model in (compiled, eager)]
    torch.testing.assert_close(packed[0], packed[1], rtol=0, atol=tolerance)


def test_a_compiled_copy_gives_what_the_model_gives():
    eager = small_casa("helium", **FUSIONS["casa"])
    check(torch.compile(copy.deepcopy(eager), backend="eager"), eager, "tiny", 1e-5)


@pytest.mark.slow
def test_a_model_that_compiles_itself_gives_what_it_gave():
    eager = small_casa("qwen", tower="qwen")
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="eager")
    check(compiled, eager, "qwen", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_compiles(fusion: str):
    eager = small_casa("qwen", **FUSIONS[fusion])
    check(torch.compile(copy.deepcopy(eager), backend="eager"), eager, "tiny", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["ca", "casa"])
def test_compiled_to_machine_code_it_gives_what_it_gives(fusion: str):
    eager = small_casa("helium", **FUSIONS[fusion])
    check(torch.compile(copy.deepcopy(eager)), eager, "tiny", 1e-4)
