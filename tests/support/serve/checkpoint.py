"""A real checkpoint that is small and untrained: what it says means nothing, but depends on every input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import HeliumConfig

from casa_core.config import CasaConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint


def write_checkpoint(
    folder: Path, texts: Sequence[str], *, context: int = 256, seed: int = 0, kind: str = "cross_attention"
) -> Path:
    """Write a checkpoint whose tokenizer knows some texts, with a kind of fusion; returns the folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(texts, 300)
    text_config = HeliumConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        initializer_range=0.3,
    )
    model = CasaForConditionalGeneration(CasaConfig(text_config=text_config, fusion={"kind": kind}))
    save_checkpoint(folder, model, CasaProcessor(tokenizer))
    return folder
