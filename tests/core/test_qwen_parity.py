"""Insertion on Qwen2.5-VL is Qwen2.5-VL: the same logits as transformers' own model, positions included."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from casa_core.batch import PackedSequence, collate
from casa_core.config import CasaConfig
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration

VOCABULARY, PLACEHOLDER = 60, 59
START, END = 57, 58
PATCH_VALUES = 3 * 2 * 14 * 14
GRIDS = [(4, 6), (2, 2), (6, 2), (4, 4)]  # patches; 2 by 2 of them make an image token


@pytest.fixture(scope="module")
def theirs() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [1, 1, 2]},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PLACEHOLDER,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=56,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)  # zeros would hide a bias that is left out
    return model


@pytest.fixture(scope="module")
def ours(theirs: Qwen2_5_VLForConditionalGeneration) -> CasaForConditionalGeneration:
    config = CasaConfig(
        text_config=theirs.config.text_config.to_dict(),
        vision_config=theirs.config.vision_config.to_dict(),
        fusion=FusionConfig(kind="insertion"),
    )
    model = CasaForConditionalGeneration(config).eval()
    model.language_model.load_state_dict(theirs.model.language_model.state_dict())
    model.vision_tower.load_state_dict(theirs.model.visual.state_dict())
    model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return model


def conversation(seed: int, images: list[tuple[int, int]]) -> tuple[TokenChunk, torch.Tensor]:
    """Words, and images between a start and an end token; and the same with transformers' placeholders."""
    generator = torch.Generator().manual_seed(seed)
    word = lambda: int(torch.randint(3, 50, (), generator=generator))  # noqa: E731
    ids: list[int] = [word()]
    theirs: list[int] = [*ids]
    positions, patches = [], []
    for rows, columns in images:
        before = [*(word() for _ in range(seed % 3)), START]
        after = [END, *(word() for _ in range(seed % 4))]
        positions.append(len(ids) + len(before))
        patches.append(torch.randn(rows * columns, PATCH_VALUES, generator=generator))
        ids += [*before, *after]
        theirs += [*before, *[PLACEHOLDER] * (rows * columns // 4), *after]
    end = [word(), word()]
    tokens = [rows * columns // 4 for rows, columns in images]
    return TokenChunk([*ids, *end], positions, patches, images, tokens), torch.tensor([*theirs, *end])


@torch.inference_mode()
def their_logits(
    model: Qwen2_5_VLForConditionalGeneration, whole: TokenChunk, ids: torch.Tensor
) -> torch.Tensor:
    """Logits of text tokens alone, (T, vocabulary)."""
    is_image = ids == PLACEHOLDER
    images = {}
    if whole.grids:
        images = {
            "pixel_values": torch.cat(list(whole.patches_PE)),
            "image_grid_thw": torch.tensor([(1, *grid) for grid in whole.grids]),
        }
    output = model(input_ids=ids[None], mm_token_type_ids=is_image[None].int(), **images)
    return output.logits[0][~is_image]


CONVERSATIONS = [(1, GRIDS), (2, [(4, 6)]), (4, [(2, 2), (6, 2)]), (6, []), (8, [(8, 8)])]


@pytest.mark.parametrize(("seed", "images"), CONVERSATIONS)
def test_one_forward_gives_the_same_logits(
    theirs: Qwen2_5_VLForConditionalGeneration,
    ours: CasaForConditionalGeneration,
    seed: int,
    images: list[tuple[int, int]],
):
    whole, ids = conversation(seed, images)
    packed = collate([packed_sequence(whole)])
    with torch.inference_mode():
        logits = ours(packed.input_ids, packing=packed.packing, images=packed.images).logits[0]
    torch.testing.assert_close(logits, their_logits(theirs, whole, ids), rtol=0, atol=1e-4)


def test_packed_conversations_give_what_each_gives_alone(
    theirs: Qwen2_5_VLForConditionalGeneration, ours: CasaForConditionalGeneration
):
    drawn = [conversation(seed, images) for seed, images in CONVERSATIONS]
    packed = collate([packed_sequence(whole) for whole, _ in drawn])
    with torch.inference_mode():
        logits = ours(packed.input_ids, packing=packed.packing, images=packed.images).logits[0]
    expected = torch.cat([their_logits(theirs, whole, ids) for whole, ids in drawn])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_a_cache_filled_piece_by_piece_gives_the_same_logits(
    theirs: Qwen2_5_VLForConditionalGeneration, ours: CasaForConditionalGeneration
):
    whole, ids = conversation(1, GRIDS)
    expected = their_logits(theirs, whole, ids)
    sequences = KVBatch(ours, 1)
    for place, token in enumerate(whole.ids):
        own = [n for n, position in enumerate(whole.image_positions) if position == place]
        step = TokenChunk(
            [token],
            [0] * len(own),
            [whole.patches_PE[n] for n in own],
            [whole.grids[n] for n in own],
            [whole.image_tokens[n] for n in own],
        )
        heard = sequences.extend([step])[0]
        torch.testing.assert_close(heard, expected[place], rtol=0, atol=1e-4)
    assert sequences.text.lengths == [len(ids)], "inserted image tokens stay in the text KV"


def packed_sequence(whole: TokenChunk) -> PackedSequence:
    return PackedSequence(
        input_ids=whole.ids,
        loss_mask=[False] * len(whole.ids),
        document_starts=[0],
        image_positions=whole.image_positions,
        image_tokens=whole.image_tokens,
        image_grids=whole.grids,
        patches_PE=whole.patches_PE,
    )
