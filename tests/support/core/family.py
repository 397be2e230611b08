"""Small complete models of every fusion: both backbones, both towers, random weights everywhere.

Norms, biases and gates are random too: one that is left out, or not stored, would otherwise not show.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from casa_core.config import CasaConfig
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration

VOCABULARY = 50
PAD = 0
WIDTH = 32

BackboneKind = Literal["helium", "qwen"]
TowerKind = Literal["tiny", "qwen"]
BACKBONES: tuple[BackboneKind, ...] = ("helium", "qwen")
TOWERS: tuple[TowerKind, ...] = ("tiny", "qwen")

FUSIONS: dict[str, dict[str, Any]] = {
    "ca": {},
    "ca-before": {"placement": "before"},
    "ca-after": {"placement": "after"},
    "ca-gated": {"gate": "adaptive_sigmoid"},
    "ca-tanh": {"placement": "before", "gate": "tanh", "image_norm": "own", "text_norm": "own"},
    "ca-shared": {"shared_projections": True},
    "ca-image-ffn": {"image_ffn": True},
    "ca-global": {"positions": "global"},
    "casa": {"kind": "casa"},
    "casa-before": {"kind": "casa", "placement": "before"},
    "casa-after": {"kind": "casa", "placement": "after"},
    "casa-replace": {"kind": "casa", "placement": "replace", "layers": (0, 2)},
    "casa-replace-global": {"kind": "casa", "placement": "replace", "layers": 2, "positions": "global"},
    "casa-image-ffn": {"kind": "casa", "image_ffn": True},
    "casa-own-norms": {"kind": "casa", "image_norm": "own", "text_norm": "own"},
    "casa-global": {"kind": "casa", "positions": "global"},
    "insertion": {"kind": "insertion"},
    "qformer": {"kind": "qformer", "qformer_queries": 3, "qformer_depth": 2},
}
"""Every mechanism of the paper: kinds, placements, gates, norms, positions."""


def small_casa(
    backbone: BackboneKind = "helium",
    *,
    tower: TowerKind = "tiny",
    tied: bool = False,
    seed: int = 0,
    **fusion: Any,
) -> CasaForConditionalGeneration:
    """A model of three layers in evaluation mode, in float32.

    Args:
        backbone: Family of the language model.
        tower: Family of the vision tower; either takes patches of 4 by 4 pixels and merges 2 by 2 of them.
        tied: Share the head's weights with the token embedding.
        seed: Of the weights; the caller's random state is left alone.
        fusion: Fields of :class:`FusionConfig`.
    """
    config = CasaConfig(
        text_config=_text(backbone, tied), vision_config=_vision(tower), fusion=FusionConfig(**fusion)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CasaForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias") or "gate" in name:
                    parameter.normal_()
                elif name.startswith("qformer") and parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model


def patch_values(tower: TowerKind = "tiny") -> int:
    """E: values of a patch."""
    return 3 * 4 * 4 * (2 if tower == "qwen" else 1)


def _text(backbone: BackboneKind, tied: bool) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": tied,
    }
    if backbone == "helium":
        return sizes | {"model_type": "helium", "head_dim": WIDTH // 4}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    return sizes | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope}


def _vision(tower: TowerKind) -> dict[str, Any]:
    if tower == "tiny":
        sizes = {"hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4}
        return sizes | {"model_type": "casa_tiny_vision"}
    return {
        "model_type": "qwen2_5_vl_vision",
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "intermediate_size": 24,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": WIDTH,
        "initializer_range": 0.2,
    }
