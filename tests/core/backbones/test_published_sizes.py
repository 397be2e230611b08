"""The published models' sizes: typed off right, and counted right."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from casa_core.backbones.published import helium1_2b_text, qwen2_5_vl_3b_text, qwen2_5_vl_3b_vision
from docs import parameter_counts


def test_the_published_sizes_are_those_of_the_hubs_configurations():
    """As both releases' config.json give them: ours are typed off, so they are checked against the files."""
    hub = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "max_window_layers": 70,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151936,
    }
    config = Qwen2_5_VLConfig(**hub)
    ignored = {
        "dtype",
        "_name_or_path",
        "tie_word_embeddings",
        "in_chans",
        "max_window_layers",
        "rope_parameters",
    }
    for ours, theirs in (
        (qwen2_5_vl_3b_text(), config.text_config),
        (qwen2_5_vl_3b_vision(), config.vision_config),
    ):
        mine, hubs = ours.to_dict(), theirs.to_dict()
        for key in (mine.keys() | hubs.keys()) - ignored:
            assert mine.get(key) == hubs.get(key), key
    rope = qwen2_5_vl_3b_text().rope_parameters
    assert {key: config.text_config.rope_parameters[key] for key in rope} == rope
    assert qwen2_5_vl_3b_text().tie_word_embeddings
    assert config.tie_word_embeddings
    text = helium1_2b_text()
    assert text.head_dim * text.num_attention_heads == text.hidden_size


def test_the_tables_of_the_document_are_what_the_models_count():
    document = parameter_counts.DOCUMENT.read_text(encoding="utf-8")
    assert document == parameter_counts.replaced(document), "run: python -m docs.parameter_counts"


def test_new_parameters_are_what_the_shapes_say_by_hand():
    """The paper's 352M: 28 layers, q and o of 2048 x 2048, k and v of 1024 x 2048. Qwen has biases, too."""
    helium = 28 * (2 * 2048 * 2048 + 2 * 1024 * 2048)
    qwen = 36 * (2 * 2048 * 2048 + 2 * 256 * 2048 + 2048 + 2 * 256)
    assert round(helium / 1e6) == 352
    for text, count in ((helium1_2b_text(), helium), (qwen2_5_vl_3b_text(), qwen)):
        new = lambda **fusion: parameter_counts.new_parameters(parameter_counts.model_of(text, fusion))  # noqa: E731, B023
        for placement in ("parallel", "before", "after"):
            assert new(placement=placement) == new(kind="casa", placement=placement) == count
        assert new(image_ffn=True) == count
        assert new(shared_projections=True) == new(kind="casa", placement="replace") == 0
        gates = text.num_hidden_layers * (text.hidden_size + 1)
        assert new(gate="adaptive_sigmoid") == count + gates
        norms = text.num_hidden_layers * 2 * text.hidden_size
        assert new(gate="tanh", image_norm="own", text_norm="own") == count + norms + text.num_hidden_layers
        wide = text.hidden_size
        block = 4 * wide * wide + 4 * wide + 8 * wide * wide + 5 * wide + 4 * wide
        for queries in (32, 64, 128):
            assert new(kind="qformer", qformer_queries=queries) == block + 2 * wide + queries * wide


def test_the_towers_last_four_blocks_have_78_8_million_parameters():
    tower = parameter_counts.model_of(helium1_2b_text(), {"kind": "insertion"}).vision_tower
    assert sum(parameter.numel() for parameter in tower.parameters()) == pytest.approx(669e6, rel=1e-3)
    last = [parameter for block in list(tower.blocks)[-4:] for parameter in block.parameters()]
    assert sum(parameter.numel() for parameter in last) == pytest.approx(78.8e6, rel=1e-3)
    assert all(parameter.device == torch.device("meta") for parameter in tower.parameters())


def test_helium_with_its_tower_is_as_large_as_the_official_memory_figure_implies():
    """6.8 GiB after 512 streamed frames: 5.67 of weights in bfloat16, 0.99 and 0.11 of text and image KV."""
    model = parameter_counts.model_of(helium1_2b_text(), {})
    assert sum(p.numel() for p in model.parameters()) * 2 / 2**30 == pytest.approx(5.67, abs=0.005)
