"""The text backbones in float64, one token and one head at a time: RMS norm, RoPE, attention, SwiGLU.

Only the weights are read from the model under test; not one line is shared with it. A *place* is a token's
RoPE position, one number an axis: (position,) for Helium, (time, row, column) for Qwen2.5-VL.

Shape suffixes: C width, H query heads, G key/value heads, D head size, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from casa_core.fusion.config import FusionConfig

Weights = Mapping[str, torch.Tensor]
Tokens = list[torch.Tensor]
Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers that the weights do not tell.

    Attributes:
        layers, heads, key_value_heads, head_dim: The language model's shape.
        theta: Base of RoPE's frequencies.
        epsilon: Of the RMS norms.
        sections: Multimodal RoPE: how many of the D/2 turning pairs follow time, row and column; empty for
            Helium, whose one position turns all.
        fused_layers: Decoder layers that carry a fusion layer.
        fusion: The fusion's settings; only its stored fields are read.
    """

    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    theta: float
    epsilon: float
    sections: tuple[int, ...]
    fused_layers: frozenset[int]
    fusion: FusionConfig

    @property
    def axes(self) -> int:
        return len(self.sections) or 1

    def everywhere(self, position: int) -> Place:
        """A text token's place: the same position on every axis."""
        return (position,) * self.axes


def linear(x_C: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """A linear map by name, with its bias where it has one."""
    out = weights[f"{name}.weight"] @ x_C
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def rms_norm(x_C: torch.Tensor, weights: Weights, name: str, sizes: Sizes) -> torch.Tensor:
    return weights[f"{name}.weight"] * x_C / torch.sqrt((x_C @ x_C) / len(x_C) + sizes.epsilon)


def add(x: Tokens, update: Tokens) -> Tokens:
    """The residual stream after an update of each token."""
    return [x_C + update_C for x_C, update_C in zip(x, update, strict=True)]


@lru_cache(maxsize=4096)
def rotation(place: Place, size: int, theta: float, sections: tuple[int, ...]) -> torch.Tensor:
    """RoPE at a place, as the (D, D) matrix that it is: pair p of values turns by position · theta^(−2p/D).

    Helium: a pair are two neighbours. Qwen: the p-th value of the first half and of the second; the first
    pairs follow the time, the next ones the row, the last ones the column.
    """
    pairs = size // 2
    axis_of_pair = [axis for axis, count in enumerate(sections) for _ in range(count)] or [0] * pairs
    assert len(axis_of_pair) == pairs
    matrix = [[0.0] * size for _ in range(size)]
    for pair, axis in enumerate(axis_of_pair):
        angle = place[axis] * theta ** (-2 * pair / size)
        a, b = (pair, pairs + pair) if sections else (2 * pair, 2 * pair + 1)
        matrix[a][a], matrix[a][b] = math.cos(angle), -math.sin(angle)
        matrix[b][a], matrix[b][b] = math.sin(angle), math.cos(angle)
    return torch.tensor(matrix, dtype=torch.float64)


def softmax(scores_K: torch.Tensor) -> torch.Tensor:
    shares_K = torch.exp(scores_K - scores_K.detach().max())
    return shares_K / shares_K.sum()


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections called ``name`` (``…self_attn`` or ``…fusion``), and multi-head attention with them."""

    weights: Weights
    name: str
    sizes: Sizes

    def query(self, x_C: torch.Tensor, place: Place) -> torch.Tensor:
        """(H, D), turned to its place."""
        return self._turned(linear(x_C, self.weights, f"{self.name}.q_proj"), place)

    def key(self, x_C: torch.Tensor, place: Place) -> torch.Tensor:
        """(G, D), turned to its place."""
        return self._turned(linear(x_C, self.weights, f"{self.name}.k_proj"), place)

    def value(self, x_C: torch.Tensor) -> torch.Tensor:
        """(G, D)."""
        return linear(x_C, self.weights, f"{self.name}.v_proj").view(-1, self.sizes.head_dim)

    def attend(self, query_HD: torch.Tensor, keys: Tokens, values: Tokens) -> torch.Tensor:
        """MHA(u | v), (C,): the query of one token u against the keys and values of tokens v."""
        keys_KGD, values_KGD = torch.stack(keys), torch.stack(values)
        mixed = []
        for head in range(self.sizes.heads):
            group = head // (self.sizes.heads // self.sizes.key_value_heads)
            scores_K = keys_KGD[:, group] @ query_HD[head] / math.sqrt(self.sizes.head_dim)
            mixed.append(softmax(scores_K) @ values_KGD[:, group])
        return linear(torch.cat(mixed), self.weights, f"{self.name}.o_proj")

    def _turned(self, projected: torch.Tensor, place: Place) -> torch.Tensor:
        turn_DD = rotation(place, self.sizes.head_dim, self.sizes.theta, self.sizes.sections)
        return projected.view(-1, self.sizes.head_dim) @ turn_DD.T


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer of the language model."""

    weights: Weights
    index: int
    sizes: Sizes

    @property
    def name(self) -> str:
        return f"language_model.layers.{self.index}"

    def input_norm(self, x_C: torch.Tensor) -> torch.Tensor:
        """n."""
        return rms_norm(x_C, self.weights, f"{self.name}.input_layernorm", self.sizes)

    def self_attention(self, x: Tokens, places: Sequence[Place]) -> Tokens:
        """SA(n(x)): each token attends to all tokens of its document up to itself."""
        attention = Attention(self.weights, f"{self.name}.self_attn", self.sizes)
        keys: Tokens = []
        values: Tokens = []
        update = []
        for x_C, place in zip(x, places, strict=True):
            normed_C = self.input_norm(x_C)
            keys.append(attention.key(normed_C, place))
            values.append(attention.value(normed_C))
            update.append(attention.attend(attention.query(normed_C, place), keys, values))
        return update

    def feed_forward(self, x: Tokens) -> Tokens:
        """mlp(n₂(x)): SwiGLU on each normed token."""
        return [self._feed_forward(x_C) for x_C in x]

    def _feed_forward(self, x_C: torch.Tensor) -> torch.Tensor:
        normed_C = rms_norm(x_C, self.weights, f"{self.name}.post_attention_layernorm", self.sizes)
        gate = linear(normed_C, self.weights, f"{self.name}.mlp.gate_proj")
        up = linear(normed_C, self.weights, f"{self.name}.mlp.up_proj")
        return linear(gate / (1 + torch.exp(-gate)) * up, self.weights, f"{self.name}.mlp.down_proj")


def embedding(token: int, weights: Weights) -> torch.Tensor:
    return weights["language_model.embed_tokens.weight"][token]


def logits(x_C: torch.Tensor, weights: Weights, sizes: Sizes) -> torch.Tensor:
    """(vocabulary,) from a token after the last layer."""
    return weights["lm_head.weight"] @ rms_norm(x_C, weights, "language_model.norm", sizes)
