"""Small checkpoints with random weights, of any fusion and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import HeliumConfig

from casa_core.config import CasaConfig
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint

TEXTS = ["what colour is shape 3 red green blue", "describe it live a red circle moves on"]


def write(folder: Path, template: str = "casa-1", blind: bool = False, **fusion: Any) -> Path:
    """A small checkpoint with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS, 300, template)
    text_config = HeliumConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    config = CasaConfig(text_config=text_config, fusion=FusionConfig(**fusion), images_withheld=blind)
    model = CasaForConditionalGeneration(config)
    save_checkpoint(folder, model, CasaProcessor(tokenizer, template=template), provenance={"steps": 7})
    return folder
