"""Our models' weights in layouts of others: other prefixes, other modules, Llama's order of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from casa_core.config import CasaConfig
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.published import helium, picture, qwen, randomised, seen_logits, with_weights

WORDS = [7, 3, 22, 41, 5, 30, 11, 2]
HEAD_DIM = 8


def fused(backbone: str, **fusion: Any) -> CasaForConditionalGeneration:
    """A small model with every weight random, Qwen's kind of tower before it; Qwen's head is tied."""
    text = qwen().config.text_config if backbone == "qwen" else helium().config
    text.tie_word_embeddings = backbone == "qwen"
    config = CasaConfig(text_config=text, vision_config=qwen().config.vision_config, fusion=fusion)
    return randomised(CasaForConditionalGeneration(config))


def answers(model: CasaForConditionalGeneration) -> torch.Tensor:
    """What it says to two pictures in a text: any weight at a wrong place changes it."""
    return seen_logits(model, WORDS, [1, 4], [picture(1), picture(2)])


def exported(
    folder: Path,
    model: CasaForConditionalGeneration,
    *,
    text: str = "model.",
    tower: str = "image_prefix.enc.visual.",
    fusion: str = "casa_attn.{}",
    halves: bool = False,
    change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda weights: weights,
) -> Path:
    """Write the model's weights under other names.

    Args:
        text, tower: What stands before the known names.
        fusion: Where a decoder layer keeps the fusion layer's modules.
        halves: Queries and keys in Llama's order of rows.
        change: Applied to the renamed weights.
    """
    weights = {}
    for name, value in model.named_parameters():
        kept = value.detach().clone()
        if halves and name.split(".")[-2] in ("q_proj", "k_proj"):
            kept = kept.unflatten(0, (-1, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()
        weights[_foreign_name(name, text, tower, fusion)] = kept
    return with_weights(folder, dict(change(weights)), shards=2)


def _foreign_name(name: str, text: str, tower: str, fusion: str) -> str:
    if name.startswith("language_model."):
        place, mark, own = name.partition(".fusion.")
        module, dot, kind = own.partition(".")
        renamed = f"{place}.{fusion.format(module)}{dot}{kind}" if mark else name
        return renamed.replace("language_model.", text, 1)
    return name.replace("vision_tower.", tower, 1)
