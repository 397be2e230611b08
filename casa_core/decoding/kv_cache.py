"""The KV caches: self-attention's text KV, bounded or not, and the KV of the current image windows.

Shape suffixes: B sequences, L new tokens of a row, S entries of a row, X tokens of all rows, G key/value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from casa_core.errors import ConfigError

KeysValues = tuple[torch.Tensor, torch.Tensor]
# (keys (G, X, D), positions to shift them by) → keys, through the backbone's own RoPE.
RopeShift = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBounds:
    """Bounds of the text KV: the first tokens (attention sinks) and the most recent ones are kept.

    Positions are those inside the cache: when tokens are dropped, the keys after them are shifted back by as
    many positions, so a stream of any length never runs out of positions (Xiao et al., 2023: "Efficient
    Streaming Language Models with Attention Sinks").

    Attributes:
        sinks: Tokens at the start that are never dropped.
        recent: Least number of most recent tokens kept.
        slack: Tokens beyond both that accumulate before they are dropped together, so a key is shifted about
            recent / slack times in all, not once per token.

    Raises:
        ConfigError: If a number is too small.
    """

    sinks: int = 64
    recent: int = 4096
    slack: int = 512

    def __post_init__(self) -> None:
        for name, least in (("sinks", 0), ("recent", 1), ("slack", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"Text bounds: {name} = {getattr(self, name)} is too small.",
                    f"`{name}` counts text tokens.",
                    f"Set it to {least} or more.",
                )

    @property
    def limit(self) -> int:
        """Largest number of text tokens per sequence."""
        return self.sinks + self.recent + self.slack


class TextCache:
    """Self-attention's keys and values of B sequences, each in the first entries of its own row.

    Implements the part of transformers' cache protocol that attention layers use (``update``). New tokens of
    a row follow its old ones; padding at the *right* end of a row is overwritten by the next tokens.

    Args:
        limit: Largest length of a row; no memory beyond it (rounded up to a block) is allocated in advance.
    """

    block = 64  # rows grow by at least so many entries at a time

    def __init__(self, size: int, limit: int | None = None) -> None:
        self.size = size
        self.limit = limit
        self.lengths = [0] * size
        self.keys: dict[int, torch.Tensor] = {}  # layer → (B, G, capacity, D)
        self.values: dict[int, torch.Tensor] = {}
        self._new = 0
        self._entry_BL: torch.Tensor | None = None

    def expect(self, new: int, device: torch.device) -> None:
        """Prepare for a forward that writes ``new`` tokens (padding included) to every row."""
        self._new = new
        together = len(set(self.lengths)) == 1
        starts = None if together else torch.tensor(self.lengths, device=device)
        self._entry_BL = None if starts is None else starts[:, None] + torch.arange(new, device=device)

    def update(
        self, key_BGLD: torch.Tensor, value_BGLD: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> KeysValues:
        """Write new keys and values; returns all of them, (B, G, S, D) with S the longest row."""
        return (
            self._write(self.keys, layer_idx, key_BGLD),
            self._write(self.values, layer_idx, value_BGLD),
        )

    def _write(self, store: dict[int, torch.Tensor], layer: int, new_BGLD: torch.Tensor) -> torch.Tensor:
        total = max(self.lengths) + self._new
        held = store.get(layer)
        if held is None or held.shape[2] < total:
            held = store[layer] = self._grown(held, new_BGLD, total)
        if self._entry_BL is None:
            held[:, :, total - self._new : total] = new_BGLD
        else:
            row_B1 = torch.arange(self.size, device=held.device)[:, None]
            held[row_B1, :, self._entry_BL] = new_BGLD.transpose(1, 2)
        return held[:, :, :total]

    def _grown(self, held: torch.Tensor | None, like: torch.Tensor, total: int) -> torch.Tensor:
        # A quarter more: a copy every n/4 tokens costs little beside the n entries that each token reads, and
        # at most a fifth of the memory is spare. Zeros, because masked entries are multiplied by a weight of
        # zero, and zero times garbage may be NaN.
        ahead = 0 if held is None else held.shape[2] * 5 // 4
        capacity = max(total, ahead if self.limit is None else min(ahead, self.limit))
        capacity = -(-capacity // self.block) * self.block
        grown = like.new_zeros(self.size, like.shape[1], capacity, like.shape[3])
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        return grown

    def drop(self, row: int, first: int, count: int, shift_rope: RopeShift) -> None:
        """Drop ``count`` tokens of a row from entry ``first`` on and shift the later keys back by as many."""
        length = self.lengths[row]
        for layer, key in self.keys.items():
            value = self.values[layer]
            key[row, :, first : length - count] = shift_rope(key[row, :, first + count : length], -count)
            value[row, :, first : length - count] = value[row, :, first + count : length].clone()
        self.lengths[row] = length - count

    def rows(self, row: int) -> dict[int, KeysValues]:
        """Layer → one sequence's keys and values, (G, length, D) each."""
        length = self.lengths[row]
        return {n: (self.keys[n][row, :, :length], self.values[n][row, :, :length]) for n in self.keys}

    def restore(self, row: int, layers: dict[int, KeysValues]) -> None:
        """Load what :meth:`rows` returned into a row."""
        for layer, pair in layers.items():
            for store, part_GSD in zip((self.keys, self.values), pair, strict=True):
                length = part_GSD.shape[1]
                held = store.get(layer)
                if held is None or held.shape[2] < length:
                    held = store[layer] = self._grown(held, part_GSD[None], length)
                held[row, :, :length] = part_GSD
                self.lengths[row] = length

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare entries included."""
        return sum(t.nbytes for store in (self.keys, self.values) for t in store.values())


@dataclass(slots=True)
class WindowCache:
    """Keys and values of each sequence's current window, one entry per fusion layer.

    Keys are stored after RoPE: positions inside a window do not change while it lasts. Tokens are flat,
    sequence by sequence, as :class:`casa_core.fusion.windows.Windows` orders carried tokens.

    Attributes:
        images: Layer → image keys and values, (X, G, D) each.
        text: Layer → the window's text keys and values, where the layers attend to text (eq. 3).
    """

    images: dict[int, KeysValues] = field(default_factory=dict)
    text: dict[int, KeysValues] = field(default_factory=dict)

    def extend_images(self, layer: int, new: KeysValues | None) -> KeysValues | None:
        """Append new images to the cached ones; returns all of them, ``None`` if there are none."""
        return _extend(self.images, layer, new)

    def extend_text(self, layer: int, new: KeysValues) -> KeysValues:
        """Append new text to the cached text; returns all of it."""
        extended = _extend(self.text, layer, new)
        assert extended is not None
        return extended

    def keep(self, image_index: torch.Tensor | None, text_index: torch.Tensor | None) -> None:
        """Keep only the tokens of the given indices, in their order (``None``: all)."""
        for store, index in ((self.images, image_index), (self.text, text_index)):
            if index is None:
                continue
            for layer, (key, value) in store.items():
                store[layer] = key.index_select(0, index), value.index_select(0, index)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for store in (self.images, self.text) for pair in store.values() for t in pair)


def _extend(store: dict[int, KeysValues], layer: int, new: KeysValues | None) -> KeysValues | None:
    old = store.get(layer)
    if new is None:
        return old
    if old is not None and len(old[0]):
        new = torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]])
    store[layer] = new
    return new


def row_slices(counts: Sequence[int]) -> list[slice]:
    """Each sequence's slice of a flat cache, given its number of tokens."""
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
