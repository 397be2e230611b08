"""The real backbones' configurations, as published, for building models of their size without their weights.

Loading a backbone's weights does not read this: :func:`casa_core.weights.from_backbone.from_backbone` reads
the configuration that is stored with them.
"""

from __future__ import annotations

from transformers.models.helium import HeliumConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)


def helium1_2b_text() -> HeliumConfig:
    """``kyutai/helium-1-2b``: 28 layers, 2.02 B parameters (the class's own defaults are the older preview).

    It is published as a model of type ``llama``, whose RoPE turns other pairs than Helium's;
    :mod:`casa_core.weights.from_backbone` reorders its rows when it loads them.
    """
    return HeliumConfig(
        vocab_size=64_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        rms_norm_eps=1e-8,
        rope_parameters={"rope_type": "default", "rope_theta": 20_000.0},
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    )


def qwen2_5_vl_3b_text() -> Qwen2_5_VLTextConfig:
    """The language model of ``Qwen/Qwen2.5-VL-3B-Instruct``: 36 layers, 3.09 B parameters, tied head."""
    return Qwen2_5_VLTextConfig(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=128_000,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [16, 24, 24],
        },
        tie_word_embeddings=True,  # pyright: ignore[reportCallIssue]
        bos_token_id=151_643,
        eos_token_id=151_645,
    )


def qwen2_5_vl_3b_vision() -> Qwen2_5_VLVisionConfig:
    """The vision tower of ``Qwen/Qwen2.5-VL-3B-Instruct``: 32 blocks, 669 M parameters, 2048 wide at its end.

    Helium1-2B is as wide, so the same tower serves it without another projection.
    """
    return Qwen2_5_VLVisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        in_channels=3,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=112,
        out_hidden_size=2048,
        fullatt_block_indexes=[7, 15, 23, 31],
    )
