"""Reading piece by piece, images arriving mid-stream, is reading at once: in any company, for any fusion."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.batch import PackedSequence, collate
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import BACKBONES, FUSIONS, VOCABULARY, BackboneKind, patch_values, small_casa

GRIDS = [(2, 2), (4, 2), (2, 6), (4, 4)]  # patches; 2 by 2 of them make an image token
EVERY = pytest.mark.parametrize("fusion", FUSIONS)
BOTH = pytest.mark.parametrize("backbone", BACKBONES)


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


@st.composite
def pieces_of(draw: st.DrawFn, whole: TokenChunk) -> list[TokenChunk | None]:
    """A conversation cut anywhere, with pauses; a cut may fold a frame's last word into the next piece."""
    length = len(whole.ids)
    cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=6)))
    out: list[TokenChunk | None] = []
    for start, end in pairwise([0, *cuts, length]):
        own = [n for n, position in enumerate(whole.image_positions) if start <= position < end]
        if draw(st.booleans()):
            out.append(None)
        out.append(
            TokenChunk(
                whole.ids[start:end],
                [whole.image_positions[n] - start for n in own],
                [whole.patches_PE[n] for n in own],
                [whole.grids[n] for n in own],
                [whole.image_tokens[n] for n in own],
            )
        )
    return out


@torch.inference_mode()
def at_once(model: CasaForConditionalGeneration, whole: TokenChunk) -> torch.Tensor:
    """(tokens, vocabulary) in one forward, without a cache, as training runs it."""
    batch = collate(
        [
            PackedSequence(
                input_ids=whole.ids,
                loss_mask=[False] * len(whole.ids),
                document_starts=[0],
                image_positions=whole.image_positions,
                image_tokens=whole.image_tokens,
                image_grids=whole.grids,
                patches_PE=whole.patches_PE,
            )
        ]
    )
    logits = model(batch.input_ids, packing=batch.packing, images=batch.images).logits
    assert logits is not None
    return logits[0]


@EVERY
@BOTH
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_pieces_in_company_give_the_logits_of_one_forward_alone(
    fusion: str, backbone: BackboneKind, data: st.DataObject
):
    model = model_of(fusion, backbone)
    wholes = [data.draw(conversations()) for _ in range(3)]
    rows = [data.draw(pieces_of(whole)) for whole in wholes]
    expected = [at_once(model, whole) for whole in wholes]
    sequences = KVBatch(model, 3)
    for turn in range(max(map(len, rows))):
        step = [row[turn] if turn < len(row) else None for row in rows]
        if not any(step):
            continue
        heard_BV = sequences.extend(step)
        for row, piece in enumerate(step):
            if piece is not None:
                read = sequences.lengths[row]
                torch.testing.assert_close(heard_BV[row], expected[row][read - 1], rtol=0, atol=1e-4)
    assert sequences.lengths == [len(whole.ids) for whole in wholes]


@EVERY
@BOTH
def test_a_seat_taken_again_remembers_nothing(fusion: str, backbone: BackboneKind):
    model = model_of(fusion, backbone)
    image = torch.randn(4, patch_values(), generator=torch.Generator().manual_seed(0))
    first = TokenChunk([3, 4, 5, 6], [1], [image], [(2, 2)], [1])
    second = TokenChunk([7, 8, 9], [2], [image * 2], [(2, 2)], [1])
    sequences = KVBatch(model, 3)
    sequences.extend([first, second, first])
    sequences.reset(1)
    sequences.extend([None, second, None])
    more = TokenChunk([10, 11])
    after = sequences.extend([more, more, more])
    for row, before in enumerate((first, second, first)):
        alone = KVBatch(model, 1)
        alone.extend([before])
        torch.testing.assert_close(after[row], alone.extend([more])[0], rtol=0, atol=1e-4)


@BOTH
def test_only_text_is_kept_of_a_stream_with_fusion_layers_and_everything_of_an_insertion(
    backbone: BackboneKind,
):
    image = torch.randn(16, patch_values(), generator=torch.Generator().manual_seed(0))
    frame = TokenChunk([3, 4], [1], [image], [(4, 4)], [4])
    for fusion, kv_tokens, window_tokens in (("ca", 40, 4), ("casa", 40, 4), ("insertion", 120, 0)):
        sequences = KVBatch(model_of(fusion, backbone), 1)
        for _ in range(20):
            sequences.extend([frame])
        assert sequences.text.lengths == [kv_tokens]
        held = [len(key) for key, _ in sequences.windows.images.values()]
        assert held == [window_tokens] * (3 if window_tokens else 0)
        assert {len(key) for key, _ in sequences.windows.text.values()} <= {1}, (
            "one word since the last frame"
        )
