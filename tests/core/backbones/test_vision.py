"""The vision towers: Qwen's gives what transformers' gives for each image alone."""

from __future__ import annotations

import pytest
import torch
from transformers.models.helium import HeliumConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from casa_core.backbones.tiny import TinyVisionTower
from casa_core.backbones.vision import QwenVisionTower, build_tower, last_blocks
from casa_core.config import CasaConfig, TinyVisionConfig
from casa_core.errors import ConfigError

# Windows of 8 x 8 patches, as in the real tower: (32, 18) has several, also cut ones; (2, 2) is one token.
GRIDS = [(32, 18), (2, 2), (4, 20), (8, 8), (16, 16), (16, 16)]


def small_config(**changes: object) -> Qwen2_5_VLVisionConfig:
    """Qwen's tower at toy width: windowed blocks and one that sees the whole image."""
    sizes = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 24,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLVisionConfig(**(sizes | changes))  # pyright: ignore[reportArgumentType]


def full_config() -> Qwen2_5_VLVisionConfig:
    """The tower of Qwen2.5-VL-3B."""
    return Qwen2_5_VLVisionConfig(hidden_size=1280, out_hidden_size=2048)


@pytest.fixture(scope="module")
def tower() -> QwenVisionTower:
    torch.manual_seed(0)
    tower = QwenVisionTower(small_config())
    with torch.no_grad():  # initial biases are zero and norms one: a tower that ignores them would pass
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower.eval()


@pytest.fixture(scope="module")
def theirs(tower: QwenVisionTower) -> Qwen2_5_VisionTransformerPretrainedModel:
    """transformers' own tower with the same weights, loaded by name."""
    reference = Qwen2_5_VisionTransformerPretrainedModel._from_config(small_config()).eval()
    reference.load_state_dict(tower.state_dict())
    return reference


def patches(grid: tuple[int, int], seed: int) -> torch.Tensor:
    rows, columns = grid
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows * columns, 3 * 2 * 14 * 14, generator=generator)


@torch.no_grad()
def test_images_of_many_sizes_in_one_call_equal_transformers_on_each_alone(
    tower: QwenVisionTower, theirs: Qwen2_5_VisionTransformerPretrainedModel
):
    images = [patches(grid, seed) for seed, grid in enumerate(GRIDS)]
    together_NC = tower(torch.cat(images), GRIDS)
    alone = [
        theirs(image, torch.tensor([(1, *grid)])).pooler_output
        for image, grid in zip(images, GRIDS, strict=True)
    ]
    assert together_NC.shape == (sum(rows * columns // 4 for rows, columns in GRIDS), 24)
    torch.testing.assert_close(together_NC, torch.cat(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_image_does_not_feel_its_neighbours(tower: QwenVisionTower):
    one, other, third = (patches((16, 16), seed) for seed in range(3))
    first = tower(torch.cat([one, other]), [(16, 16)] * 2)[:64]
    second = tower(torch.cat([one, third]), [(16, 16)] * 2)[:64]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, tower(third, [(16, 16)]))


def test_gradients_equal_transformers_own(
    tower: QwenVisionTower, theirs: Qwen2_5_VisionTransformerPretrainedModel
):
    grids = GRIDS[:3]
    patches_PE = torch.cat([patches(grid, seed) for seed, grid in enumerate(grids)])
    tower(patches_PE, grids).square().sum().backward()
    theirs(patches_PE, torch.tensor([(1, *grid) for grid in grids])).pooler_output.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_saved_tower_comes_back_the_same(tower: QwenVisionTower, tmp_path):
    """Buffers that are not stored (rotation frequencies) are there again too."""
    tower.save_pretrained(tmp_path)
    again = QwenVisionTower.from_pretrained(tmp_path).eval()
    image = patches((8, 12), 0)
    torch.testing.assert_close(again(image, [(8, 12)]), tower(image, [(8, 12)]), rtol=0, atol=0)


@torch.no_grad()
def test_a_tower_in_half_precision_takes_patches_in_full(tower: QwenVisionTower):
    half = QwenVisionTower(small_config()).to(torch.bfloat16)
    assert half(patches((4, 4), 0), [(4, 4)]).dtype == torch.bfloat16


def test_the_full_tower_has_the_published_size():
    with torch.device("meta"):
        tower = QwenVisionTower(full_config())
    assert round(sum(p.numel() for p in tower.parameters()) / 1e6) == 669
    trained = sum(p.numel() for block in last_blocks(tower, 4) for p in block.parameters())
    assert round(trained / 1e6, 1) == 78.8
    assert last_blocks(tower, 4) == list(tower.blocks)[28:]
    assert sum(block.attn.whole_image for block in tower.blocks) == 4


def test_the_last_blocks_of_the_small_tower():
    tower = TinyVisionTower(TinyVisionConfig(depth=3), 96)
    assert last_blocks(tower, 2) == list(tower.blocks)[1:]
    assert last_blocks(tower, 0) == []
    with pytest.raises(ConfigError, match="last 4 blocks of a vision tower of 3"):
        last_blocks(tower, 4)


def test_the_configuration_chooses_the_tower():
    text = HeliumConfig(hidden_size=24)
    assert isinstance(build_tower(CasaConfig(text)), TinyVisionTower)
    assert isinstance(build_tower(CasaConfig(text, small_config())), QwenVisionTower)


def test_a_tower_of_another_width_than_the_language_model_is_refused():
    config = CasaConfig(HeliumConfig(hidden_size=96), small_config())
    with pytest.raises(ConfigError, match="24 wide, the language model 96"):
        build_tower(config)
