"""The tiny vision tower from the whole picture, one image at a time: no patches until the very end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import conv2d, gelu, group_norm, layer_norm

Weights = Mapping[str, torch.Tensor]


def naive_tower(picture_3HW: torch.Tensor, weights: Weights, *, heads: int, merge: int) -> torch.Tensor:
    """(image tokens, width) of one picture, in raster order of its merged cells.

    Args:
        picture_3HW: Normalised pixels, already resized.
        weights: The tower's state dict.
        heads, merge: What the weights do not tell.
    """
    grid_CRS = picture_3HW[None]
    for level in range(sum(name.startswith("stem.convs") for name in weights)):
        conv, norm = f"stem.convs.{level}", f"stem.norms.{level}"
        grid_CRS = conv2d(grid_CRS, weights[f"{conv}.weight"], stride=2, padding=1)
        grid_CRS = gelu(
            group_norm(grid_CRS, grid_CRS.shape[1], weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        )
    grid_CRS = grid_CRS[0]
    width, rows, columns = grid_CRS.shape
    places = [(row, column) for row in range(rows) for column in range(columns)]
    x_PC = torch.stack(
        [grid_CRS[:, row, column] + 0.3 * _place(row, column, width) for row, column in places]
    )
    for block in range(len({name.split(".")[1] for name in weights if name.startswith("blocks.")})):
        x_PC = _block(x_PC, weights, f"blocks.{block}", heads)
    x_PC = layer_norm(x_PC, (width,), weights["norm.weight"], weights["norm.bias"])
    tokens = []
    for row in range(0, rows, merge):
        for column in range(0, columns, merge):
            cell = [
                (row + down) * columns + column + right for down in range(merge) for right in range(merge)
            ]
            merged = torch.cat([x_PC[place] for place in cell])
            hidden = gelu(weights["merger.0.weight"] @ merged + weights["merger.0.bias"])
            tokens.append(weights["merger.2.weight"] @ hidden + weights["merger.2.bias"])
    return torch.stack(tokens)


def _place(row: int, column: int, width: int) -> torch.Tensor:
    """sin of the row's and the column's angles, then their cosines; frequencies fall from 1 towards 1/100."""
    quarter = width // 4
    angles = [place * 100 ** -(i / quarter) for place in (row, column) for i in range(quarter)]
    return torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def _block(x_PC: torch.Tensor, weights: Weights, name: str, heads: int) -> torch.Tensor:
    normed = layer_norm(x_PC, x_PC.shape[1:], weights[f"{name}.norm1.weight"], weights[f"{name}.norm1.bias"])
    qkv = normed @ weights[f"{name}.qkv.weight"].T + weights[f"{name}.qkv.bias"]
    query, key, value = qkv.chunk(3, dim=1)
    mixed = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        mixed.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v)
    x_PC = x_PC + torch.cat(mixed, 1) @ weights[f"{name}.proj.weight"].T + weights[f"{name}.proj.bias"]
    normed = layer_norm(x_PC, x_PC.shape[1:], weights[f"{name}.norm2.weight"], weights[f"{name}.norm2.bias"])
    hidden = gelu(normed @ weights[f"{name}.mlp.0.weight"].T + weights[f"{name}.mlp.0.bias"])
    return x_PC + hidden @ weights[f"{name}.mlp.2.weight"].T + weights[f"{name}.mlp.2.bias"]
