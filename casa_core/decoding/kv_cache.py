"""The KV caches: self-attention's text KV, bounded or not, and the KV of the current image windows.

Shape suffixes: B sequences, A those of them that a forward extends, L new tokens of a row, S entries of a
row, X tokens of all rows, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from casa_core.fusion.segments import Tokens

KeysValues = tuple[torch.Tensor, torch.Tensor]
# (keys (G, X, D), positions to shift them by) → keys, through the backbone's own RoPE.
RopeShift = Callable[[torch.Tensor, int], torch.Tensor]


class TextCache:
    """Self-attention's keys and values of B sequences, each in the first entries of its own row.

    Implements the part of transformers' cache protocol that attention layers use (``update``). New tokens of
    a row follow its old ones; padding at the *right* end of a row is overwritten by the next tokens.

    Args:
        limit: Largest length of a row; no memory beyond it (rounded up to a block) is allocated in advance.
        reserve: Entries that every row has from the first write on; rows grow beyond them where there is no
            limit.
    """

    block = 64  # rows grow by at least so many entries at a time

    def __init__(self, size: int, limit: int | None = None, *, reserve: int = 0) -> None:
        self.size = size
        self.limit = limit
        self.reserve = reserve
        self.lengths = [0] * size
        self.keys: dict[int, torch.Tensor] = {}  # layer → (B, G, capacity, D)
        self.values: dict[int, torch.Tensor] = {}
        self._rows: list[int] = []
        self._total = self._new = 0
        self._index: tuple[torch.Tensor, torch.Tensor] | None = None

    def expect(self, new: int, device: torch.device, rows: Sequence[int] | None = None) -> None:
        """Prepare for a forward that writes ``new`` tokens (padding included) to every one of some rows."""
        self._rows = list(range(self.size)) if rows is None else list(rows)
        lengths = [self.lengths[row] for row in self._rows]
        self._new, self._total = new, max(lengths) + new
        self._index = None
        if len(set(lengths)) > 1 or not self._together:
            entry_AL = torch.tensor(lengths, device=device)[:, None] + torch.arange(new, device=device)
            self._index = torch.tensor(self._rows, device=device), entry_AL

    @property
    def _together(self) -> bool:
        """Whether the rows are neighbours, so that a view holds them."""
        return self._rows[-1] - self._rows[0] + 1 == len(self._rows)

    def update(
        self, key_AGLD: torch.Tensor, value_AGLD: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> KeysValues:
        """Write new keys and values of the rows that were announced, A of them.

        Returns:
            All their keys and values, (A, G, S, D) with S the longest of these rows.
        """
        return (
            self._write(self.keys, layer_idx, key_AGLD),
            self._write(self.values, layer_idx, value_AGLD),
        )

    def make_room(self, total: int) -> None:
        """Let every row of every layer have ``total`` entries."""
        for store in (self.keys, self.values):
            for layer, held in store.items():
                if held.shape[2] < total:
                    store[layer] = self._grown(held, held, total)

    def _write(self, store: dict[int, torch.Tensor], layer: int, new_AGLD: torch.Tensor) -> torch.Tensor:
        held = store.get(layer)
        if held is None or held.shape[2] < self._total:
            held = store[layer] = self._grown(held, new_AGLD, self._total)
        first, last = self._rows[0], self._rows[-1]
        if self._index is None:
            held[first : last + 1, :, self._total - self._new : self._total] = new_AGLD
            return held[first : last + 1, :, : self._total]
        row_A, entry_AL = self._index
        held[row_A[:, None], :, entry_AL] = new_AGLD.transpose(1, 2)
        shown = held[:, :, : self._total]
        return shown[first : last + 1] if self._together else shown.index_select(0, row_A)

    def _grown(self, held: torch.Tensor | None, like: torch.Tensor, total: int) -> torch.Tensor:
        # A quarter more: a copy every n/4 tokens costs little beside the n entries that each token reads, and
        # at most a fifth of the memory is spare. Zeros, because masked entries are multiplied by a weight of
        # zero, and zero times garbage may be NaN.
        ahead = self.reserve if held is None else held.shape[2] * 5 // 4
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

    def erase(self, row: int) -> None:
        """Set a row's entries to zero."""
        for store in (self.keys, self.values):
            for held in store.values():
                held[row] = 0

    def reorder(self, order: Sequence[int], order_B: torch.Tensor) -> None:
        """Row n becomes what row ``order[n]`` was."""
        for store in (self.keys, self.values):
            for layer, tensor in store.items():
                store[layer] = tensor.index_select(0, order_B)
        self.lengths = [self.lengths[row] for row in order]

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


@dataclass(frozen=True, slots=True)
class WindowChange:
    """What a forward does to the window of one row.

    Attributes:
        row: The row.
        images: The part of the forward's new image tokens that is the row's window from now on; ``None``: its
            window stays.
        text: The part of the forward's new text tokens, padding counted, that belongs to that window.
    """

    row: int
    images: slice | None
    text: slice


class WindowCache:
    """Keys and values of each sequence's current window, one entry per fusion layer.

    Keys are stored after RoPE: positions inside a window do not change while it lasts. Each row holds its
    tokens in its first entries.

    Args:
        size: B.
        attends_text: Whether the layers attend to the window's text too (eq. 3).
        reserve: Image tokens, and text tokens, that every row has room for from the first window on.

    Attributes:
        images: Layer → image keys and values, (B, capacity, G, D) each.
        text: Layer → the window's text keys and values, for eq. 3.
        image_lengths, text_lengths: Tokens of each row.
    """

    block = 64

    def __init__(self, size: int, *, attends_text: bool = False, reserve: tuple[int, int] = (0, 0)) -> None:
        self.size = size
        self.images: dict[int, KeysValues] = {}
        self.text: dict[int, KeysValues] = {}
        self.image_lengths = [0] * size
        self.text_lengths = [0] * size
        self._attends_text = attends_text
        self._reserve = reserve
        self._changes: Sequence[WindowChange] = ()
        self._pending: list[tuple[dict[int, KeysValues], int, WindowChange, KeysValues]] = []

    def expect(self, changes: Sequence[WindowChange]) -> None:
        """Announce what the next forward does to its rows' windows, in the order of its rows."""
        self._changes = changes
        self._pending = []  # of a forward that failed

    def extend_images(self, layer: int, new: KeysValues | None) -> tuple[Tokens, Tokens] | None:
        """The images of the forward's rows: those of their windows so far, row by row, then the new ones.

        Returns:
            (X, G, D) keys and values, each in several parts; ``None`` if there are none.
        """
        if new is not None:
            for change in self._changes:
                if change.images is not None:
                    self._pend(self.images, layer, change, new, change.images)
        return self._with_new(self.images, self.image_lengths, layer, new)

    def extend_text(self, layer: int, new: KeysValues) -> tuple[Tokens, Tokens]:
        """The same for text tokens."""
        for change in self._changes:
            self._pend(self.text, layer, change, new, change.text)
        extended = self._with_new(self.text, self.text_lengths, layer, new)
        assert extended is not None
        return extended

    def commit(self) -> None:
        """Write what the forward brought; until then its layers have read the windows before it."""
        for store, layer, change, part in self._pending:
            goes_on = store is self.text and change.images is None
            start = self.text_lengths[change.row] if goes_on else 0
            self._write(store, layer, change.row, start, part)
        self._pending = []
        for change in self._changes:
            if change.images is not None:
                self.image_lengths[change.row] = change.images.stop - change.images.start
                self.text_lengths[change.row] = 0
            if self._attends_text:
                self.text_lengths[change.row] += change.text.stop - change.text.start
        self._changes = ()

    def make_room(self, text: int) -> None:
        """Let every row of every layer have so many entries for its window's text."""
        for layer, held in self.text.items():
            self._with_room(self.text, layer, held, text)

    def erase(self, row: int) -> None:
        """Set a row's entries to zero."""
        for store in (self.images, self.text):
            for pair in store.values():
                for held in pair:
                    held[row] = 0

    def reset(self, row: int) -> None:
        """Leave a row without a window."""
        self.image_lengths[row] = self.text_lengths[row] = 0

    def rows(self, row: int) -> tuple[dict[int, KeysValues], dict[int, KeysValues]]:
        """Layer → one row's image keys and values, and its text's, (tokens, G, D) each: views."""
        images, text = self.image_lengths[row], self.text_lengths[row]
        return (
            {layer: (key[row, :images], value[row, :images]) for layer, (key, value) in self.images.items()},
            {layer: (key[row, :text], value[row, :text]) for layer, (key, value) in self.text.items()},
        )

    def restore(self, row: int, images: Mapping[int, KeysValues], text: Mapping[int, KeysValues]) -> None:
        """Load what :meth:`rows` returned into a row."""
        self.reset(row)
        for held, store, lengths in (
            (images, self.images, self.image_lengths),
            (text, self.text, self.text_lengths),
        ):
            for layer, part in held.items():
                self._write(store, layer, row, 0, part)
                lengths[row] = len(part[0])

    def reorder(self, order: Sequence[int], order_B: torch.Tensor) -> None:
        """Row n becomes what row ``order[n]`` was."""
        for store in (self.images, self.text):
            for layer, (key, value) in store.items():
                store[layer] = key.index_select(0, order_B), value.index_select(0, order_B)
        self.image_lengths = [self.image_lengths[row] for row in order]
        self.text_lengths = [self.text_lengths[row] for row in order]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare entries included."""
        return sum(t.nbytes for store in (self.images, self.text) for pair in store.values() for t in pair)

    def _pend(
        self, store: dict[int, KeysValues], layer: int, change: WindowChange, new: KeysValues, part: slice
    ) -> None:
        if part.stop > part.start:
            key, value = new[0][part], new[1][part]
            # A view would keep all layers' keys of a long prompt in memory until the forward's end.
            if len(key) * 2 < len(new[0]):
                key, value = key.clone(), value.clone()
            self._pending.append((store, layer, change, (key, value)))

    def _with_new(
        self, store: dict[int, KeysValues], lengths: Sequence[int], layer: int, new: KeysValues | None
    ) -> tuple[Tokens, Tokens] | None:
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for change in self._changes:
            if length := lengths[change.row]:
                key, value = store[layer]
                keys.append(key[change.row, :length])
                values.append(value[change.row, :length])
        if new is not None:
            keys.append(new[0])
            values.append(new[1])
        return (keys, values) if keys else None

    def _write(
        self, store: dict[int, KeysValues], layer: int, row: int, start: int, part: KeysValues
    ) -> None:
        """Write tokens of a row from entry ``start`` on, with more room where there is too little."""
        end = start + len(part[0])
        for all_rows, new in zip(self._with_room(store, layer, part, end), part, strict=True):
            all_rows[row, start:end] = new

    def _with_room(
        self, store: dict[int, KeysValues], layer: int, like: KeysValues, total: int
    ) -> KeysValues:
        held = store.get(layer)
        if held is not None and held[0].shape[1] >= total:
            return held
        ahead = self._reserve[store is self.text] if held is None else held[0].shape[1] * 5 // 4
        capacity = -(-max(total, ahead) // self.block) * self.block
        key, value = (one.new_zeros(self.size, capacity, *one.shape[-2:]) for one in like)
        if held is not None:
            key[:, : held[0].shape[1]], value[:, : held[0].shape[1]] = held
        store[layer] = key, value
        return key, value
