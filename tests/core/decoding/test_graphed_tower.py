"""A vision tower that is recorded and replayed: the same kernels at the same addresses, and the same tokens.

No GPU is needed: see :mod:`tests.support.core.recording`.
"""

from __future__ import annotations

import pytest
import torch

from casa_core.backbones.vision import QwenVisionTower, VisionTower
from casa_core.decoding.graphed_tower import MOST_GRAPHS, GraphedTower
from casa_core.engine.image_encoder import embed
from tests.support.core.family import TowerKind, patch_values, small_casa
from tests.support.core.recording import record

SQUARE, WIDE = (4, 4), (2, 8)


def kind_of(tower: VisionTower) -> TowerKind:
    """Its family."""
    return "qwen" if isinstance(tower, QwenVisionTower) else "tiny"


def images(tower: VisionTower, grids: list[tuple[int, int]], seed: int = 0) -> torch.Tensor:
    """Patches of images of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        sum(rows * cols for rows, cols in grids), patch_values(kind_of(tower)), generator=generator
    )


@pytest.fixture(params=["tiny", "qwen"])
def tower(request: pytest.FixtureRequest):
    kind: TowerKind = request.param
    return small_casa(tower=kind).vision_tower


@torch.inference_mode()
def test_a_graph_gives_the_tokens_of_the_tower_for_any_number_of_images(tower: VisionTower):
    graphed = GraphedTower(tower, record)
    for seed, count in enumerate([3, 3, 4, 2, 3, 1, 2, 1, 1]):
        grids = [SQUARE] * count
        patches_PE = images(tower, grids, seed)
        torch.testing.assert_close(graphed(patches_PE, grids), tower(patches_PE, grids), rtol=0, atol=1e-5)
    assert graphed.recorded == 3, "of one, two and four images"


@torch.inference_mode()
def test_sizes_have_graphs_of_their_own_and_a_mixture_of_them_has_none(tower: VisionTower):
    graphed = GraphedTower(tower, record)
    for seed, grids in enumerate([[SQUARE], [WIDE], [SQUARE], [WIDE], [SQUARE, WIDE], [SQUARE, WIDE]]):
        patches_PE = images(tower, grids, seed)
        torch.testing.assert_close(graphed(patches_PE, grids), tower(patches_PE, grids), rtol=0, atol=1e-5)
    assert graphed.recorded == 2


@torch.inference_mode()
def test_what_a_pass_gave_is_not_written_over_by_the_next(tower: VisionTower):
    graphed = GraphedTower(tower, record)
    first, second = (images(tower, [SQUARE], seed) for seed in (1, 2))
    graphed(first, [SQUARE])
    found = graphed(first, [SQUARE])
    kept = found.clone()
    graphed(second, [SQUARE])
    assert torch.equal(found, kept)


@torch.inference_mode()
def test_graphs_are_bounded_and_a_picture_seen_once_has_none(tower: VisionTower):
    graphed = GraphedTower(tower, record)
    grids = [(2, 2 * columns) for columns in range(1, MOST_GRAPHS + 5)]
    for grid in grids:
        graphed(images(tower, [grid]), [grid])
    assert graphed.recorded == 0
    for grid in [one for one in grids[-3:] for _ in range(2)]:
        graphed(images(tower, [grid]), [grid])
    assert graphed.recorded == 3
    for grid in [one for one in grids for _ in range(2)]:
        graphed(images(tower, [grid]), [grid])
    assert graphed.recorded == MOST_GRAPHS


def test_an_engines_images_may_go_through_it():
    model = small_casa(tower="tiny")
    graphed = GraphedTower(model.vision_tower, record)
    patches_PE = images(model.vision_tower, [SQUARE])
    for _ in range(3):
        [found_NC] = embed([(patches_PE, SQUARE)], model, graphed)
        [expected_NC] = embed([(patches_PE, SQUARE)], model)
        torch.testing.assert_close(found_NC, expected_NC, rtol=0, atol=1e-5)
    assert graphed.recorded == 1
