"""Every fusion of the paper in float64, token by token, straight from its equations.

A document is a list of items: a token id, or a picture's image tokens (rows, columns, C) after the patch
merge. x are text tokens, y image tokens. Nothing is shared with the model but its weights and settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tests.support.naive.text import (
    Attention,
    Block,
    Place,
    Sizes,
    Tokens,
    Weights,
    add,
    embedding,
    linear,
    logits,
    rms_norm,
    softmax,
)

Document = Sequence[int | torch.Tensor]


def naive_logits(document: Document, weights: Weights, sizes: Sizes) -> torch.Tensor:
    """(text tokens, vocabulary) logits of one document."""
    if sizes.fusion.kind in ("insertion", "qformer"):
        return _inserted_logits(document, weights, sizes)
    return _fused_logits(document, weights, sizes)


def naive_loss(logits_TV: torch.Tensor, ids: Sequence[int], loss_mask: Sequence[bool]) -> torch.Tensor:
    """Mean of −log p(token | what came before it) over the tokens that the mask names."""
    surprises = [
        -torch.log(softmax(logits_TV[place - 1])[ids[place]])
        for place, trained in enumerate(loss_mask)
        if trained
    ]
    return torch.stack(surprises).mean()


# ---- Equation 1: image tokens inserted into the text ----


def _inserted_logits(document: Document, weights: Weights, sizes: Sizes) -> torch.Tensor:
    """x_i ← x_i + MHA(x_i | x_1…K y_1…N x_K+1…i): image tokens pass through the layers like text."""
    x: Tokens = []
    places: list[Place] = []
    is_text: list[bool] = []
    position = 0
    for item in document:
        if isinstance(item, int):
            x.append(embedding(item, weights))
            places.append(sizes.everywhere(position))
            is_text.append(True)
            position += 1
            continue
        rows, columns, _ = item.shape
        image = list(item.flatten(0, 1))
        if sizes.fusion.kind == "qformer":
            image = _compressed(image, weights, sizes)
        if sizes.axes == 1 or sizes.fusion.kind == "qformer":
            places += [sizes.everywhere(position + n) for n in range(len(image))]
            position += len(image)
        else:
            places += _grid_places(position, rows, columns)
            position += max(rows, columns)
        x += image
        is_text += [False] * len(image)
    for layer in range(sizes.layers):
        block = Block(weights, layer, sizes)
        x = add(x, block.self_attention(x, places))
        x = add(x, block.feed_forward(x))
    return torch.stack([logits(x_C, weights, sizes) for x_C, text in zip(x, is_text, strict=True) if text])


def _grid_places(start: int, rows: int, columns: int) -> list[Place]:
    """Multimodal RoPE: time, row and column of a picture's tokens in raster order, the first at ``start``."""
    return [(start, start + row, start + column) for row in range(rows) for column in range(columns)]


def _compressed(image: Tokens, weights: Weights, sizes: Sizes) -> Tokens:
    """The Q-Former: a picture's tokens and the queries through transformer blocks; the queries come out."""
    queries = list(weights["qformer.queries"])
    z = [*image, *queries]
    for depth in range(sizes.fusion.qformer_depth):
        name = f"qformer.blocks.{depth}"
        z = add(
            z,
            _full_attention([_layer_norm(z_C, weights, f"{name}.norm1") for z_C in z], weights, name, sizes),
        )
        z = add(z, [_gelu_mlp(_layer_norm(z_C, weights, f"{name}.norm2"), weights, name) for z_C in z])
    return [_layer_norm(z_C, weights, "qformer.norm") for z_C in z[-len(queries) :]]


def _full_attention(z: Tokens, weights: Weights, name: str, sizes: Sizes) -> Tokens:
    """Every token attends to all, without positions."""
    width = len(z[0])
    size = width // sizes.heads
    projected = [linear(z_C, weights, f"{name}.qkv").split(width) for z_C in z]
    update = []
    for query_C, _, _ in projected:
        mixed = []
        for head in range(sizes.heads):
            own = slice(head * size, (head + 1) * size)
            keys = torch.stack([key_C[own] for _, key_C, _ in projected])
            values = torch.stack([value_C[own] for _, _, value_C in projected])
            mixed.append(softmax(keys @ query_C[own] / math.sqrt(size)) @ values)
        update.append(linear(torch.cat(mixed), weights, f"{name}.proj"))
    return update


def _layer_norm(z_C: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    centred_C = z_C - z_C.mean()
    normed_C = centred_C / torch.sqrt((centred_C @ centred_C) / len(z_C) + 1e-5)
    return normed_C * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu_mlp(z_C: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    inner = linear(z_C, weights, f"{name}.mlp.0")
    return linear(inner * (1 + torch.erf(inner / math.sqrt(2))) / 2, weights, f"{name}.mlp.2")


# ---- Equations 2 and 3: fusion layers ----


@dataclass(slots=True)
class _Window:
    """Pictures with no text between them, and the text from there to the next picture.

    Attributes:
        grids: (rows, columns) of each picture.
        y: Their tokens in order, on their way through the layers.
        text: Its text tokens, by number in the document.
    """

    grids: list[tuple[int, int]] = field(default_factory=list)
    y: Tokens = field(default_factory=list)
    text: list[int] = field(default_factory=list)


def _read(document: Document, imageless: bool) -> tuple[list[int], list[_Window]]:
    """Token ids, and windows. Text before the first picture has a window only if ``imageless`` says so."""
    ids: list[int] = []
    windows = [_Window()] if imageless else []
    after_text = True
    for item in document:
        if isinstance(item, int):
            if windows:
                windows[-1].text.append(len(ids))
            ids.append(item)
            after_text = True
        else:
            if after_text:
                windows.append(_Window())
            windows[-1].grids.append((item.shape[0], item.shape[1]))
            windows[-1].y.extend(item.flatten(0, 1))
            after_text = False
    return ids, windows


def _places_inside(window: _Window, sizes: Sizes) -> tuple[list[Place], list[Place]]:
    """RoPE places of a window's image tokens and of its text tokens in a fusion layer."""
    follows_text = sizes.fusion.positions == "global"
    start = window.text[0] if follows_text and window.text else 0
    image: list[Place] = []
    position = start
    for rows, columns in window.grids:
        if sizes.axes == 1:
            image += [(position + n,) for n in range(rows * columns)]
            position += rows * columns
        else:
            image += _grid_places(position, rows, columns)
            position += max(rows, columns)
    if follows_text:
        return image, [sizes.everywhere(number) for number in window.text]
    return image, [sizes.everywhere(position + j) for j in range(len(window.text))]


def _fused_logits(document: Document, weights: Weights, sizes: Sizes) -> torch.Tensor:
    fusion = sizes.fusion
    ids, windows = _read(document, imageless=fusion.placement == "replace")
    x = [embedding(token, weights) for token in ids]
    for layer in range(sizes.layers):
        block = Block(weights, layer, sizes)
        x = _after_attention(x, block, windows)
        x = add(x, block.feed_forward(x))
        if fusion.image_ffn:
            for window in windows:
                window.y = add(window.y, block.feed_forward(window.y))
    return torch.stack([logits(x_C, weights, sizes) for x_C in x])


def _after_attention(x: Tokens, block: Block, windows: list[_Window]) -> Tokens:
    """x after a block's self-attention SA and its fusion layer F, in the order of their placement."""
    places = [block.sizes.everywhere(number) for number in range(len(x))]
    if block.index not in block.sizes.fused_layers:
        return add(x, block.self_attention(x, places))
    placement = block.sizes.fusion.placement
    if placement == "parallel":  # ⊕
        return add(add(x, block.self_attention(x, places)), _fusion_layer(x, block, windows))
    if placement == "before":  # →
        x = add(x, _fusion_layer(x, block, windows))
        return add(x, block.self_attention(x, places))
    if placement == "after":
        x = add(x, block.self_attention(x, places))
        return add(x, _fusion_layer(x, block, windows))
    assert placement == "replace"  # ∨
    return add(x, _fusion_layer(x, block, windows))


def _fusion_layer(x: Tokens, block: Block, windows: list[_Window]) -> Tokens:
    """F: MHA(x_i | y_1…N), for CASA MHA(x_i | y_1…N x_K+1…i), inside x_i's window; 0 outside every window."""
    fusion, sizes, weights = block.sizes.fusion, block.sizes, block.weights
    borrowed = fusion.shared_projections or fusion.placement == "replace"
    attention = Attention(weights, f"{block.name}.{'self_attn' if borrowed else 'fusion'}", sizes)
    update = [torch.zeros_like(x_C) for x_C in x]
    for window in windows:
        image_places, text_places = _places_inside(window, sizes)
        y = [_image_norm(y_C, block) for y_C in window.y]
        keys = [attention.key(y_C, place) for y_C, place in zip(y, image_places, strict=True)]
        values = [attention.value(y_C) for y_C in y]
        for i, place in zip(window.text, text_places, strict=True):
            t_C = _text_norm(x[i], block)
            if fusion.kind == "casa":
                keys.append(attention.key(t_C, place))
                values.append(attention.value(t_C))
            update[i] = _gate(t_C, block) * attention.attend(attention.query(t_C, place), keys, values)
    return update


def _text_norm(x_C: torch.Tensor, block: Block) -> torch.Tensor:
    if block.sizes.fusion.text_norm == "own":
        return rms_norm(x_C, block.weights, f"{block.name}.fusion.text_norm", block.sizes)
    return block.input_norm(x_C)


def _image_norm(y_C: torch.Tensor, block: Block) -> torch.Tensor:
    if block.sizes.fusion.image_norm == "own":
        return rms_norm(y_C, block.weights, f"{block.name}.fusion.image_norm", block.sizes)
    return y_C if block.sizes.fusion.image_norm == "none" else block.input_norm(y_C)


def _gate(t_C: torch.Tensor, block: Block) -> torch.Tensor | float:
    if block.sizes.fusion.gate == "adaptive_sigmoid":
        return 1 / (1 + torch.exp(-linear(t_C, block.weights, f"{block.name}.fusion.gate_proj")))
    if block.sizes.fusion.gate == "tanh":
        return torch.tanh(block.weights[f"{block.name}.fusion.gate_alpha"])
    return 1.0
