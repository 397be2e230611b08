"""Pictures become the patches that transformers' Qwen2-VL image processor makes of them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers.image_utils import SizeDict
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from casa_core.config import TinyVisionConfig
from casa_core.errors import ConfigError, DataError
from casa_core.media.images import ImageSettings
from casa_core.types import ImageSize

QWEN = ImageSettings.for_tower(Qwen2_5_VLVisionConfig())


def random_sizes(count: int, largest: int) -> list[tuple[int, int]]:
    """Heights and widths, small ones as likely as large ones, elongated ones among them."""
    chance = random.Random(0)
    sizes = []
    while len(sizes) < count:
        height, width = (round(math.exp(chance.uniform(0, math.log(largest)))) for _ in range(2))
        if max(height, width) <= 200 * min(height, width):
            sizes.append((height, width))
    return sizes


@pytest.mark.parametrize(("max_side", "min_side"), [(896, 56), (448, 56), (896, None), (1344, 112)])
def test_sizes_are_those_of_qwen(max_side: int, min_side: int | None):
    settings = ImageSettings.for_tower(Qwen2_5_VLVisionConfig(), max_side=max_side, min_side=min_side)
    smallest = min_side or 28
    beyond = 0
    for height, width in random_sizes(5000, 6000):
        size = settings.size(height, width)
        theirs = smart_resize(height, width, 28, min_pixels=smallest**2, max_pixels=max_side**2)
        if theirs[0] * theirs[1] > max_side**2:
            beyond += 1  # the one difference: ours stays within the maximum
            assert size.height * size.width <= max_side**2
        else:
            assert (size.height, size.width) == theirs
    assert beyond < 25


def test_an_elongated_picture_at_a_small_maximum_stays_within_it_where_qwens_does_not():
    theirs = smart_resize(28, 5000, 28, min_pixels=28**2, max_pixels=112**2)
    assert theirs[0] * theirs[1] > 112**2
    settings = ImageSettings.for_tower(Qwen2_5_VLVisionConfig(), max_side=112, max_frame_side=None)
    size = settings.size(28, 5000)
    assert (size.height, size.width, size.tokens) == (28, 448, 16)


@pytest.mark.parametrize(
    "shape", [(28, 28), (300, 200), (56, 840), (900, 1200), (17, 33), (7, 5), (896, 896), (613, 1999)]
)
def test_patches_are_those_of_qwens_image_processor(shape: tuple[int, int]):
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil(size=SizeDict(shortest_edge=56**2, longest_edge=896**2))
    expected = theirs(images=[PILImage.fromarray(rgb)], return_tensors="pt")
    size = QWEN.size(*shape)
    assert (1, *QWEN.grid(size)) == tuple(expected["image_grid_thw"][0].tolist())
    assert size.tokens == len(expected["pixel_values"]) // 4
    torch.testing.assert_close(QWEN.patches(rgb, size), expected["pixel_values"], rtol=1e-6, atol=1e-6)


def test_frames_of_a_video_have_a_maximum_of_their_own():
    assert (QWEN.size(2000, 2000).tokens, QWEN.size(2000, 2000, frame=True).tokens) == (1024, 256)
    plain = ImageSettings(max_side=64)
    assert plain.size(200, 200, frame=True) == plain.size(200, 200)


def test_a_towers_settings_are_its_own_but_for_what_is_changed():
    tiny = ImageSettings.for_tower(TinyVisionConfig(patch_size=16), max_side=128)
    assert tiny == ImageSettings(patch_size=16, max_side=128)
    assert (QWEN.patch_size, QWEN.merge_size, QWEN.temporal_patch_size, QWEN.factor) == (14, 2, 2, 28)
    assert (QWEN.min_side, QWEN.max_side, QWEN.max_frame_side) == (56, 896, 448)


def test_another_filter_gives_other_pixels():
    rgb = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    bicubic, bilinear = ImageSettings(), ImageSettings(resample="bilinear")
    size = bicubic.size(100, 100)
    assert not torch.equal(bicubic.patches(rgb, size), bilinear.patches(rgb, size))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 0}, "`patch_size = 0` is too small"),
        ({"max_side": 15}, "`max_side = 15` leaves no room"),
        ({"max_side": 64, "min_side": 80}, "`max_side = 64` leaves no room"),
        ({"max_frame_side": 8}, "`max_frame_side = 8` leaves no room"),
        ({"image_mean": (0.5,)}, "`image_mean = \\[0.5\\]` does not describe"),
        ({"image_std": (0.5, 0.0, 0.5)}, "`image_std = .*` does not describe"),
        ({"resample": "cubic"}, "`resample = 'cubic'` is no filter"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        ImageSettings(**changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((16, 16, 3), np.float32), r"array of float32 of shape \(16, 16, 3\)"),
        (np.zeros((3, 16, 16), np.uint8), r"array of uint8 of shape \(3, 16, 16\)"),
        (np.zeros((16, 16), np.uint8), r"array of uint8 of shape \(16, 16\)"),
        (np.zeros((16, 16, 4), np.uint8), r"array of uint8 of shape \(16, 16, 4\)"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), "of type Tensor"),
    ],
)
def test_what_is_not_rgb_pixels_is_refused_by_name(pixels: np.ndarray, message: str):
    with pytest.raises(DataError, match=message):
        ImageSettings().patches(pixels, ImageSettings().size(16, 16))


def test_the_size_of_another_picture_is_refused():
    rgb = np.zeros((32, 48, 3), np.uint8)
    with pytest.raises(DataError, match="for one of 48 by 32"):
        ImageSettings().patches(rgb, ImageSettings().size(64, 48))
    with pytest.raises(DataError, match="50 by 32 pixels cannot be cut"):
        ImageSettings().patches(rgb, ImageSize(32, 48, 32, 50, 6))


@pytest.mark.parametrize("max_frame_side", [None, 32, 128])
def test_an_image_larger_than_the_maximum_is_refused_with_the_remedy(max_frame_side: int | None):
    settings = ImageSettings(max_side=64, max_frame_side=max_frame_side)
    side = max(64, max_frame_side or 0)
    rgb = np.zeros((300, 200, 3), np.uint8)
    fitting = ImageSize(300, 200, 2 * side, side // 2, side**2 // 256)  # elongated: as many pixels
    assert settings.patches(rgb, fitting).shape[0] == side**2 // 64
    larger = ImageSize(300, 200, 2 * side, side // 2 + 16, side**2 // 256 + side // 8)
    with pytest.raises(DataError, match=f"is larger than max_side = {side}") as refused:
        settings.patches(rgb, larger)
    assert f"{side // 2 + 16} by {2 * side} pixels" in refused.value.what
    assert "raise its max_side" in refused.value.remedy
