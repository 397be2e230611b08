"""A text stream with bounded memory, token by token: keys are kept unturned and turned anew for every query.

Written from the description of attention sinks (Xiao et al., 2023): the first tokens and the most recent ones
are kept, and positions count inside what is kept. Text only; the language model's arithmetic is naive_text's.

Shape suffixes: C width, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tests.support.naive.text import Attention, Block, Sizes, Tokens, Weights, embedding, logits, rotation


@dataclass(slots=True)
class NaiveBoundedStream:
    """What a stream remembers: for each layer and kept token its unturned key, (G, D), and its value."""

    weights: Weights
    sizes: Sizes
    sinks: int
    recent: int
    slack: int
    keys: list[Tokens] = field(init=False)
    values: list[Tokens] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [[] for _ in range(self.sizes.layers)]
        self.values = [[] for _ in range(self.sizes.layers)]

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read tokens that come together; (vocabulary,) logits after the last one."""
        held = len(self.keys[0])
        if held + len(tokens) > self.sinks + self.recent + self.slack:
            forgotten = held + len(tokens) - self.sinks - self.recent
            for kept in (*self.keys, *self.values):
                del kept[self.sinks : self.sinks + forgotten]
        return torch.stack([self._read(token) for token in tokens])[-1]

    def _read(self, token: int) -> torch.Tensor:
        x_C = embedding(token, self.weights)
        here = len(self.keys[0])
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            block = Block(self.weights, index, self.sizes)
            attention = Attention(self.weights, f"{block.name}.self_attn", self.sizes)
            normed_C = block.input_norm(x_C)
            keys.append(attention.key(normed_C, self.sizes.everywhere(0)))  # position 0 turns nothing
            values.append(attention.value(normed_C))
            query_HD = attention.query(normed_C, self.sizes.everywhere(here))
            turned = [self._turned(key_GD, place) for place, key_GD in enumerate(keys)]
            x_C = x_C + attention.attend(query_HD, turned, values)
            x_C = x_C + block.feed_forward([x_C])[0]
        return logits(x_C, self.weights, self.sizes)

    def _turned(self, key_GD: torch.Tensor, place: int) -> torch.Tensor:
        sizes = self.sizes
        turn_DD = rotation(sizes.everywhere(place), sizes.head_dim, sizes.theta, sizes.sections)
        return key_GD @ turn_DD.T
