"""The naive fusion layer once more, with its attention laid open: every weight written down, any key left
out.

A window's *places* are its image tokens, then its text tokens, counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from casa_core.decoding.plan import TokenChunk
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.layouts import Document, ids_of, images_of, lay_out, outline_of
from tests.support.core.models import sizes_of, weights_of
from tests.support.naive import fusion as naive_fusion
from tests.support.naive.text import Attention, Block, Tokens, linear, softmax

# (image tokens of the window, number of the text token in it) → the place it may not attend to, if any
Lost = Callable[[int, int], int | None]


@dataclass(frozen=True, slots=True)
class Weighed:
    """What one text token attended to in one layer.

    Attributes:
        layer: The decoder layer.
        token: The text token's number in the document.
        first: The number of its window's first text token.
        images: Image tokens of its window.
        weights: One a place of the window that it sees, averaged over heads.
    """

    layer: int
    token: int
    first: int
    images: int
    weights: list[float]


@dataclass(slots=True)
class Opened:
    """The attention of naive forwards, opened."""

    lost: Lost | None = None
    weighed: list[Weighed] = field(default_factory=list)

    def fusion_layer(self, x: Tokens, block: Block, windows: list[Any]) -> Tokens:
        """F as in naive_fusion, less the lost place of each token."""
        fusion, sizes = block.sizes.fusion, block.sizes
        borrowed = fusion.shared_projections or fusion.placement == "replace"
        name = f"{block.name}.{'self_attn' if borrowed else 'fusion'}"
        attention = Attention(block.weights, name, sizes)
        update = [torch.zeros_like(x_C) for x_C in x]
        for window in windows:
            image_places, text_places = naive_fusion._places_inside(window, sizes)
            y = [naive_fusion._image_norm(y_C, block) for y_C in window.y]
            keys = [attention.key(y_C, place) for y_C, place in zip(y, image_places, strict=True)]
            values = [attention.value(y_C) for y_C in y]
            for number, (i, place) in enumerate(zip(window.text, text_places, strict=True)):
                t_C = naive_fusion._text_norm(x[i], block)
                if fusion.kind == "casa":
                    keys.append(attention.key(t_C, place))
                    values.append(attention.value(t_C))
                lost = self.lost(len(y), number) if self.lost else None
                seen = [n for n in range(len(keys)) if n != lost]
                weights, mixed_C = _attend(attention, attention.query(t_C, place), keys, values, seen)
                self.weighed.append(Weighed(block.index, i, window.text[0], len(y), weights))
                if seen:
                    update[i] = naive_fusion._gate(t_C, block) * linear(
                        mixed_C, block.weights, f"{name}.o_proj"
                    )
        return update


def _attend(
    attention: Attention, query_HD: torch.Tensor, keys: Tokens, values: Tokens, seen: list[int]
) -> tuple[list[float], torch.Tensor]:
    """Weights over ``seen`` averaged over heads, and the heads' mixtures of values side by side."""
    heads, groups, size = query_HD.shape[0], keys[0].shape[0], query_HD.shape[1]
    total, mixed = [0.0] * len(seen), []
    for head in range(heads):
        group = head * groups // heads
        scores = [keys[n][group] @ query_HD[head] / math.sqrt(size) for n in seen]
        weights = softmax(torch.stack(scores)) if seen else torch.zeros(0, dtype=torch.float64)
        parts = [weight * values[n][group] for weight, n in zip(weights, seen, strict=True)]
        mixed.append(torch.stack(parts).sum(dim=0) if parts else torch.zeros_like(query_HD[head]))
        total = [sum_ + float(weight) / heads for sum_, weight in zip(total, weights, strict=True)]
    return total, torch.cat(mixed)


@contextmanager
def opened(lost: Lost | None = None) -> Iterator[Opened]:
    """Naive forwards write their weights down, and leave out what is lost, for as long as this lasts."""
    record, usual = Opened(lost), naive_fusion._fusion_layer
    naive_fusion._fusion_layer = record.fusion_layer
    try:
        yield record
    finally:
        naive_fusion._fusion_layer = usual


def naive_logits_of(model: CasaForConditionalGeneration, document: Document) -> torch.Tensor:
    """(text tokens, vocabulary) of a document, by the naive forward with the model's weights."""
    with torch.no_grad():
        return naive_fusion.naive_logits(document, weights_of(model), sizes_of(model))


def extension_of(document: Document) -> TokenChunk:
    """The whole document as a cache takes it; its "patches" are the image tokens."""
    layout = lay_out([outline_of(document)])
    images = images_of(document)
    return TokenChunk(
        ids_of(document),
        layout.image_positions,
        [image.flatten(0, 1) for image in images],
        layout.image_grids,
        layout.image_tokens,
    )
