"""Random conversations, and a model of each fusion to read them."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import strategies as st

from casa_core.decoding.kv_batch import TokenChunk
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import FUSIONS, VOCABULARY, BackboneKind, patch_values, small_casa

GRIDS = [(2, 2), (4, 2), (2, 6), (4, 4)]  # patches; 2 by 2 of them make an image token


@cache
def model_of(fusion: str, backbone: BackboneKind) -> CasaForConditionalGeneration:
    return small_casa(backbone, **FUSIONS[fusion])


@st.composite
def conversations(draw: st.DrawFn, length: int = 14) -> TokenChunk:
    """Words with images among them: leading text, several images in a row, many images, or none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
    positions = sorted(draw(st.lists(st.integers(0, length - 1), max_size=5)))
    grids = [draw(st.sampled_from(GRIDS)) for _ in positions]
    patches = [torch.randn(rows * cols, patch_values(), generator=generator) for rows, cols in grids]
    return TokenChunk(ids, positions, patches, grids, [rows * cols // 4 for rows, cols in grids])
