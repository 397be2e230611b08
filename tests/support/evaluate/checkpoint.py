"""Tiny untrained checkpoints: they answer nonsense, but through every line of the real engine."""

from __future__ import annotations

from pathlib import Path

import torch

from casa_core.backbones.tiny import tiny_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint

TEXTS = [
    "what color does it have? red blue teal",
    "what shape is it? circle",
    "Describe it live. a red circle",
]


def write_checkpoint(folder: Path, *, blind: bool, hidden_size: int = 32) -> Path:
    """A random model with the quickstart's parts, from a fixed seed."""
    tokenizer = build_tokenizer(TEXTS, 300)
    assert isinstance(tokenizer.pad_token_id, int)
    assert isinstance(tokenizer.eos_token_id, int)
    config = tiny_config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        images_withheld=blind,
    )
    torch.manual_seed(0)
    processor = CasaProcessor(tokenizer, max_side=32)
    save_checkpoint(folder, CasaForConditionalGeneration(config), processor)
    return folder
