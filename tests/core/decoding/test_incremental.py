"""Reading piece by piece, images arriving mid-stream, is reading at once: in any company, for any fusion."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.inputs import ImageInputs
from tests.support.core.conversations import conversations, model_of
from tests.support.core.engine import full_logits
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind, patch_values

EVERY = pytest.mark.parametrize("fusion", FUSIONS)
BOTH = pytest.mark.parametrize("backbone", BACKBONES)


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
    expected = [full_logits(model, whole) for whole in wholes]
    sequences = KVBatch(model, 3)
    for turn in range(max(map(len, rows))):
        step = [row[turn] if turn < len(row) else None for row in rows]
        if not any(step):
            continue
        heard_AV = sequences.extend(step)
        extended = [row for row, piece in enumerate(step) if piece is not None]
        for heard_V, row in zip(heard_AV, extended, strict=True):
            read = sequences.lengths[row]
            torch.testing.assert_close(heard_V, expected[row][read - 1], rtol=0, atol=1e-4)
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
        sequences.extend([frame])
        first = sequences.windows.nbytes
        for _ in range(19):
            sequences.extend([frame])
        assert sequences.text.lengths == [kv_tokens]
        assert len(sequences.windows.images) == (3 if window_tokens else 0)
        assert sequences.windows.image_lengths == [window_tokens]
        assert sequences.windows.text_lengths[0] <= 1, "one word since the last frame"
        assert sequences.windows.nbytes <= first, "the first frame's room serves them all"


@pytest.mark.parametrize("fusion", ["ca", "casa-image-ffn", "insertion", "qformer"])
def test_images_embedded_beforehand_are_read_as_their_patches_are(fusion: str):
    model = model_of(fusion, "helium")
    whole = TokenChunk([3, 4, 5, 6], [1, 3], *_two_images())
    embedded = []
    for patches_PE, grid in zip(whole.patches_PE, whole.grids, strict=True):
        with torch.inference_mode():
            embedded.append(model.embed_images(ImageInputs(patches_PE, [grid]), torch.float32))
    before = replace(whole, patches_PE=(), features_NC=embedded)
    found, expected = (KVBatch(model, 1).extend([chunk]) for chunk in (before, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _two_images() -> tuple[list[torch.Tensor], list[tuple[int, int]], list[int]]:
    generator = torch.Generator().manual_seed(3)
    patches = [torch.randn(count, patch_values(), generator=generator) for count in (4, 8)]
    return patches, [(2, 2), (4, 2)], [1, 2]
