"""The whole fused Helium, token by token: one document, one layer, one head, one key at a time.

Only the weights are read from the model under test; not one line is shared with it. Follows the paper: a
text token's update in each block is its self-attention plus (⊕) its cross-attention to the image tokens of
its window (eq. 2), both from the same normed input; image tokens are keys and values there and nothing else.
Positions inside a window count its image tokens from 0, then its text.

C is the width, D the head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers that the weights do not tell."""

    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    theta: float
    epsilon: float
    fused_layers: frozenset[int]


@dataclass(slots=True)
class _Token:
    """A text token on its way through the layers."""

    hidden_C: torch.Tensor
    place: int
    window: int
    window_place: int


def naive_logits(document: list[int | torch.Tensor], weights: Weights, sizes: Sizes) -> torch.Tensor:
    """(text tokens, vocabulary) logits of one document of token ids and pictures' image tokens (n, C)."""
    tokens, windows = _read(document, weights)
    for layer in range(sizes.layers):
        tokens = _layer(
            tokens, windows, weights, f"language_model.layers.{layer}", layer in sizes.fused_layers, sizes
        )
    final = [_rms(token.hidden_C, weights["language_model.norm.weight"], sizes) for token in tokens]
    return torch.stack([weights["lm_head.weight"] @ hidden_C for hidden_C in final])


def _read(
    document: list[int | torch.Tensor], weights: Weights
) -> tuple[list[_Token], list[list[torch.Tensor]]]:
    """Text tokens with their places, and the image tokens of each window. Window 0 is "none yet"."""
    tokens: list[_Token] = []
    windows: list[list[torch.Tensor]] = [[]]
    after_text = True
    said = 0
    for item in document:
        if isinstance(item, torch.Tensor):
            if after_text:
                windows.append([])
                said = 0
            windows[-1].extend(item)
            after_text = False
        else:
            hidden_C = weights["language_model.embed_tokens.weight"][item]
            tokens.append(_Token(hidden_C, len(tokens), len(windows) - 1, len(windows[-1]) + said))
            said += 1
            after_text = True
    return tokens, windows


def _layer(
    tokens: list[_Token],
    windows: list[list[torch.Tensor]],
    weights: Weights,
    name: str,
    fused: bool,
    sizes: Sizes,
) -> list[_Token]:
    input_norm = weights[f"{name}.input_layernorm.weight"]
    normed = [_rms(token.hidden_C, input_norm, sizes) for token in tokens]
    text_places = [token.place for token in tokens]
    keys = _heads(normed, weights[f"{name}.self_attn.k_proj.weight"], text_places, sizes)
    values = _heads(normed, weights[f"{name}.self_attn.v_proj.weight"], None, sizes)
    seen = []
    for window in windows if fused else []:
        image = [_rms(token_C, input_norm, sizes) for token_C in window]
        places = list(range(len(image)))
        seen.append(
            (
                _heads(image, weights[f"{name}.fusion.k_proj.weight"], places, sizes),
                _heads(image, weights[f"{name}.fusion.v_proj.weight"], None, sizes),
            )
        )
    after = []
    for token, normed_C in zip(tokens, normed, strict=True):
        past = slice(0, token.place + 1)
        update_C = _attend(
            normed_C, token.place, keys[past], values[past], weights, f"{name}.self_attn", sizes
        )
        if fused and windows[token.window]:
            update_C = update_C + _attend(
                normed_C, token.window_place, *seen[token.window], weights, f"{name}.fusion", sizes
            )
        hidden_C = token.hidden_C + update_C
        hidden_C = hidden_C + _mlp(hidden_C, weights, name, sizes)
        after.append(_Token(hidden_C, token.place, token.window, token.window_place))
    return after


def _attend(
    normed_C: torch.Tensor,
    place: int,
    keys: list[list[torch.Tensor]],
    values: list[list[torch.Tensor]],
    weights: Weights,
    name: str,
    sizes: Sizes,
) -> torch.Tensor:
    """One token's attention over some keys, each a list of key/value heads of size D; projected back to C."""
    (queries,) = _heads([normed_C], weights[f"{name}.q_proj.weight"], [place], sizes)
    out = []
    for head, query_D in enumerate(queries):
        group = head // (sizes.heads // sizes.key_value_heads)
        scores = torch.stack([query_D @ key[group] for key in keys]) / math.sqrt(sizes.head_dim)
        shares = torch.exp(scores - scores.max())
        shares = shares / shares.sum()
        mixed_D = torch.zeros_like(query_D)
        for share, value in zip(shares, values, strict=True):
            mixed_D = mixed_D + share * value[group]
        out.append(mixed_D)
    return weights[f"{name}.o_proj.weight"] @ torch.cat(out)


def _heads(
    tokens: list[torch.Tensor], weight: torch.Tensor, places: list[int] | None, sizes: Sizes
) -> list[list[torch.Tensor]]:
    """Each token projected and cut into heads of size D, rotated where places are given."""
    projected = [list((weight @ token_C).split(sizes.head_dim)) for token_C in tokens]
    if places is None:
        return projected
    return [
        [_rotate(head_D, place, sizes.theta) for head_D in heads]
        for heads, place in zip(projected, places, strict=True)
    ]


def _rotate(head_D: torch.Tensor, place: int, theta: float) -> torch.Tensor:
    """RoPE, interleaved: each pair of neighbouring values turns by place · theta^(−pair·2/D)."""
    out = []
    for pair in range(len(head_D) // 2):
        angle = place * theta ** (-2 * pair / len(head_D))
        x, y = head_D[2 * pair], head_D[2 * pair + 1]
        out += [x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle)]
    return torch.stack(out)


def _rms(hidden_C: torch.Tensor, weight_C: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return weight_C * hidden_C / torch.sqrt((hidden_C * hidden_C).sum() / len(hidden_C) + sizes.epsilon)


def _mlp(hidden_C: torch.Tensor, weights: Weights, name: str, sizes: Sizes) -> torch.Tensor:
    """SwiGLU on the normed token."""
    normed_C = _rms(hidden_C, weights[f"{name}.post_attention_layernorm.weight"], sizes)
    gate = weights[f"{name}.mlp.gate_proj.weight"] @ normed_C
    up = weights[f"{name}.mlp.up_proj.weight"] @ normed_C
    return weights[f"{name}.mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
