"""The assembled model: exactly its backbone without images, its parts as configured, its tower as defined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.helium import HeliumForCausalLM

from casa_core.batch import collate
from casa_core.config import CasaConfig, FusionConfig, TinyVisionConfig
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from tests.support.core.layouts import Document, document, sequence
from tests.support.core.models import WIDTH, small_model
from tests.support.naive.tower import naive_tower

WITH_PICTURES = [0, 2, 3, 0, 0, 4, 0]
TEXT_ALONE = [0] * 6


def backbone_of(model: CasaForConditionalGeneration) -> HeliumForCausalLM:
    """transformers' own Helium with the same weights."""
    config = type(model.config.text_config)(**model.config.text_config.to_dict())
    config._attn_implementation = "sdpa"
    base = HeliumForCausalLM(config)
    weights = {
        name.replace("language_model.", "model."): value
        for name, value in model.state_dict().items()
        if not name.startswith("vision_tower.") and ".fusion." not in name
    }
    base.load_state_dict(weights, strict=True)
    return base.eval()


def a_document(outline: list[int]) -> Document:
    return document(outline, WIDTH, torch.Generator().manual_seed(0))


def fused_logits(model: CasaForConditionalGeneration, items: Document) -> torch.Tensor:
    inputs: dict[str, Any] = {**collate([sequence([items], dtype=model.dtype)]).inputs(), "loss_mask": None}
    return model(**inputs).logits


def base_logits(model: CasaForConditionalGeneration, items: Document) -> torch.Tensor:
    ids = torch.tensor([[item for item in items if isinstance(item, int)]])
    return backbone_of(model)(ids, use_cache=False).logits


def test_without_images_the_fused_model_is_its_backbone_bit_for_bit():
    model = small_model(torch.float32)
    items = a_document(TEXT_ALONE)
    assert torch.equal(fused_logits(model, items), base_logits(model, items))


def test_with_images_it_is_not():
    model = small_model(torch.float32)
    items = a_document(WITH_PICTURES)
    assert not torch.allclose(fused_logits(model, items), base_logits(model, items), atol=1e-2)


def test_a_zero_output_start_is_the_backbone_with_images_too_and_can_still_learn():
    model = small_model(torch.float32, init="zero_output")
    model.initialize_fusion()
    items = a_document(WITH_PICTURES)
    logits = fused_logits(model, items)
    assert torch.equal(logits, base_logits(model, items))
    logits.square().sum().backward()
    assert all(layer.fusion.o_proj.weight.grad.abs().sum() > 0 for layer in model.fused_layers())


def test_the_default_start_copies_each_blocks_self_attention():
    model = small_model(torch.float32)
    model.initialize_fusion()
    for layer in model.fused_layers():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            ours, theirs = getattr(layer.fusion, name).weight, getattr(layer.self_attn, name).weight
            assert torch.equal(ours, theirs)
            assert ours is not theirs


@pytest.mark.parametrize(
    ("layers", "fused"),
    [("all", (0, 1, 2, 3)), (2, (1, 3)), (4, (3,)), ((2, 0), (0, 2)), ([3], (3,))],
)
def test_the_chosen_layers_are_fused(layers: Any, fused: tuple[int, ...]):
    assert FusionConfig(layers=layers).layer_indices(4) == fused


@pytest.mark.parametrize("layers", [0, 5, (4,), (-1,), ()])
def test_layers_outside_the_backbone_are_refused(layers: Any):
    with pytest.raises(ConfigError, match="does not fit a backbone of 4 layers"):
        FusionConfig(layers=layers).layer_indices(4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"placement": "sideways"}, "`fusion.placement = 'sideways'`"),
        ({"plcement": "parallel"}, "no setting 'plcement'"),
    ],
)
def test_unknown_fusion_settings_are_refused_by_name(fields: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        CasaConfig(fusion=fields)


def test_a_configuration_survives_the_way_through_json():
    config = CasaConfig(fusion=FusionConfig(layers=(0, 2), init="zero_output"), images_withheld=True)
    again = CasaConfig.from_dict(config.to_dict())
    assert again.fusion_settings == config.fusion_settings
    assert again.images_withheld
    assert again.to_dict() == config.to_dict()


def pictures(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]


def test_the_tower_sees_each_picture_whole_and_alone():
    torch.manual_seed(0)
    config = CasaConfig(text_config=small_model().config.text_config, vision_config=TinyVisionConfig(depth=2))
    tower = CasaForConditionalGeneration(config).vision_tower.double()
    processor = CasaProcessor(build_tokenizer(["a"], 270))
    images = pictures((32, 48), (32, 48), (16, 64), (48, 16))
    sizes = [processor.image_size(*rgb.shape[:2]) for rgb in images]
    patches_PE = torch.cat([processor.patches(rgb, size) for rgb, size in zip(images, sizes, strict=True)])
    tokens_NC = tower(patches_PE.double(), [processor.grid(size) for size in sizes])
    expected = [
        naive_tower(
            torch.from_numpy(rgb).permute(2, 0, 1).double() / 127.5 - 1, tower.state_dict(), heads=4, merge=2
        )
        for rgb in images
    ]
    assert [len(one) for one in expected] == [size.tokens for size in sizes]
    torch.testing.assert_close(tokens_NC, torch.cat(expected), rtol=0, atol=1e-5)
