"""Gradient checkpointing: less memory, the same loss and gradients, in every fusion and in the tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from casa_core.batch import collate
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import FUSIONS, BackboneKind, TowerKind, small_casa
from tests.support.core.hf_rows import row, three_rows

PARTS: list[tuple[BackboneKind, TowerKind]] = [("helium", "tiny"), ("qwen", "qwen")]


def batch(tower: TowerKind) -> dict[str, Any]:
    rows = [*three_rows(tower), row(20, {4: [(4, 4), (4, 6)], 11: [(6, 6)]}, 7, tower)]
    return collate([one.packed([n > 0 for n in range(len(one.ids))]) for one in rows]).inputs()


def step(model: CasaForConditionalGeneration, inputs: dict[str, Any]) -> tuple[float, int]:
    """One forward and backward; the loss, and the bytes that the forward keeps for the backward."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    loss.backward()
    return loss.item(), sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("settings", [None, {"use_reentrant": False}])
@pytest.mark.parametrize(("backbone", "tower"), PARTS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_loss_and_gradients_are_the_same_and_fewer_activations_are_kept(
    fusion: str, backbone: BackboneKind, tower: TowerKind, settings: dict[str, Any] | None
):
    model = small_casa(backbone, tower=tower, **FUSIONS[fusion]).train()
    inputs = batch(tower)
    loss, memory = step(model, inputs)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    again, less = step(model, inputs)
    assert again == pytest.approx(loss, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6, msg=name)
    assert less < 0.2 * memory


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(enable|disable)` is deprecated:FutureWarning")
@pytest.mark.parametrize("tower", ["tiny", "qwen"])
def test_the_tower_takes_part_where_it_is_trained_and_alone(tower: TowerKind):
    model = small_casa(tower=tower, **FUSIONS["insertion"]).train()
    model.language_model.requires_grad_(False)
    inputs = batch(tower)
    patches_PE, grids = inputs["images"].patches_PE, inputs["images"].grids
    kept: list[int] = []

    def bytes_kept() -> int:
        kept.clear()
        with saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            model.embed_images(inputs["images"], torch.float32).sum().backward()
        return sum(kept)

    assert len(patches_PE) == sum(rows * columns for rows, columns in grids)
    much = bytes_kept()
    wanted = {name: parameter.grad for name, parameter in model.vision_tower.named_parameters()}
    model.zero_grad()
    model.recompute_activations()
    assert bytes_kept() < 0.5 * much
    for name, parameter in model.vision_tower.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-5)
    model.gradient_checkpointing_disable()
    assert bytes_kept() == much


def test_image_tokens_that_pass_the_feed_forward_layers_are_recomputed_too():
    grids = {1: [(16, 16)]}
    packed = collate([row(4, grids, 3).packed([False, True, True, True])]).inputs()
    kept = {}
    for fusion in ("ca", "ca-image-ffn"):
        model = small_casa(**FUSIONS[fusion]).train()
        model.recompute_activations()
        kept[fusion] = step(model, packed)[1]
    tokens, width = 64, 32
    # Beyond what is kept without them: each of two layers' input and output at the most.
    assert kept["ca-image-ffn"] - kept["ca"] <= 4 * tokens * width * 4


@pytest.mark.parametrize(("backbone", "tower"), PARTS)
def test_a_frozen_tower_and_frozen_embeddings_are_not_run_backwards(backbone: BackboneKind, tower: TowerKind):
    model = small_casa(backbone, tower=tower, **FUSIONS["casa"]).train()
    model.vision_tower.requires_grad_(False)
    embeddings = model.get_input_embeddings().requires_grad_(False)
    model.recompute_activations()
    outputs: dict[str, torch.Tensor] = {}
    for name, module in {"tower": model.vision_tower, "embeddings": embeddings}.items():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    assert model(**batch(tower)).loss.requires_grad
    assert {name: output.requires_grad for name, output in outputs.items()} == {
        "tower": False,
        "embeddings": False,
    }


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpoints_that_would_lose_the_images_gradients_are_refused():
    model = small_casa()
    with pytest.raises(ConfigError, match="use_reentrant=True"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={})
    model.train()
    assert step(model, batch("tiny"))[0] == step(small_casa().train(), batch("tiny"))[0]


def test_a_model_that_was_trained_with_checkpoints_still_generates():
    model = small_casa(**FUSIONS["casa"]).train()
    model.recompute_activations()
    step(model, batch("tiny"))
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "max_new_tokens": 3, "do_sample": False}
    tokens: Any = model.eval().generate(**inputs)
    expected: Any = small_casa(**FUSIONS["casa"]).generate(**inputs)
    assert torch.equal(tokens, expected)
