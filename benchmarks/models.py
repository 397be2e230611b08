"""Small models with random weights, and synthetic frames: inputs of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers.models.helium import HeliumConfig

from casa_core.config import CasaConfig, FusionConfig, TinyVisionConfig
from casa_core.engine.engine import Engine
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer

TEXTS = ("describe it live: a red circle moves to the left", "what colour is the square? green")
CONTEXT = 1 << 20  # positions are computed, not looked up: a long context costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Sizes of a small Helium with a tiny tower.

    Attributes:
        hidden: Width; heads are ``hidden / heads`` wide.
        layers, heads, kv_heads: Their numbers in the language model.
        side: Side of a frame, pixels; an image token covers 16 × 16 of them.
        spread: Standard deviation of the weights.
    """

    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    side: int = 128
    spread: float = 0.08

    @property
    def image_tokens(self) -> int:
        """Image tokens of one frame."""
        return (self.side // 16) ** 2


def small_engine(size: Size, fusion: FusionConfig, *, seed: int = 0) -> Engine:
    """An engine over a random model; the same seed gives the same one."""
    tokenizer = build_tokenizer(TEXTS, 320)
    text = HeliumConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        initializer_range=size.spread,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.get_vocab()["<|pad|>"],
        bos_token_id=None,
        eos_token_id=tokenizer.get_vocab()["<|end|>"],
    )
    config = CasaConfig(text_config=text, vision_config=TinyVisionConfig(), fusion=fusion)
    torch.manual_seed(seed)
    model = CasaForConditionalGeneration(config)
    processor = CasaProcessor.for_model(tokenizer, config, template="casa-1", max_side=size.side)
    return Engine(model, processor)


COLOURS = ("red", "lime", "blue", "black", "gray", "teal", "brown", "yellow")


def film(side: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Endless (side, side, 3) frames like those of the quickstart's clips.

    A shape drifts over a pale ground; every few frames another shape replaces it.
    """
    rng = np.random.default_rng(seed)
    ground = tuple(rng.integers(230, 256, 3).tolist())
    shape, colour, left = 0, 0, 0
    place, width, height = np.zeros(2), 0.0, 0.0
    while True:
        if left == 0:
            shape, colour = (shape + int(rng.integers(1, 3))) % 3, (colour + int(rng.integers(1, 8))) % 8
            place, left = rng.uniform(0.3, 0.7, 2), int(rng.integers(3, 7))
            width, height = (rng.uniform(0.1, 0.25, 2) * side).tolist()
        left -= 1
        place = np.clip(place + rng.normal(0, 0.03, 2), 0.2, 0.8)
        picture = Image.new("RGB", (side, side), ground)
        draw, (x, y) = ImageDraw.Draw(picture), (side * place).tolist()
        if shape == 0:
            draw.ellipse((x - width, y - width, x + width, y + width), fill=COLOURS[colour])
        elif shape == 1:
            draw.rectangle((x - width, y - height, x + width, y + height), fill=COLOURS[colour])
        else:
            corners = [(x - width, y + width), (x + width, y + width), (x, y - width)]
            draw.polygon(corners, fill=COLOURS[colour])
        yield np.asarray(picture)
