"""The beginnings of conversations that slots still hold, so that a further turn reads only what is new.

Shape suffixes: T text tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casa_core.decoding.kv_batch import KVBatch
from casa_core.engine.image_encoder import Encoded

LEAST_TOKENS = 16
"""A shorter common beginning is read again: that costs less than to give up an empty slot's neighbourhood."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning that a free slot still holds.

    Attributes:
        slot: The slot.
        tokens: How many text tokens the prompt has in common with it.
        before_image: The token that follows them in the prompt has an image before it.
    """

    slot: int
    tokens: int
    before_image: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """Token ids, and the keys of the images before each token that follows some."""

    ids_T: NDArray[np.int64]
    images: dict[int, tuple[Hashable, ...]]

    def common(self, other: _Held) -> int:
        """How many tokens both begin with, the images before each included."""
        most = min(len(self.ids_T), len(other.ids_T))
        differing_T = np.flatnonzero(self.ids_T[:most] != other.ids_T[:most])
        tokens = int(differing_T[0]) if len(differing_T) else most
        images = self.images.keys() | other.images.keys()
        return min([tokens, *(at for at in images if self.images.get(at) != other.images.get(at))])


class Prefixes:
    """What free slots hold: token ids, and the keys of the images before each."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def keep(self, slot: int, prompt: Encoded, ids: Sequence[int], tokens: int) -> None:
        """Remember what a finished answer's slot has read: ``tokens`` of its prompt and its own ``ids``."""
        self._held[slot] = _held(prompt, ids, tokens)

    def forget(self, slot: int) -> None:
        """The slot is taken."""
        self._held.pop(slot, None)

    def find(self, prompt: Encoded, free: Sequence[int], sequences: KVBatch) -> Prefix | None:
        """The longest beginning of a prompt that one of the ``free`` slots holds and can continue."""
        # At least one token is read, as its logits are wanted.
        wanted = _held(prompt, (), len(prompt.chunk.ids) - 1)
        images = prompt.chunk.image_positions
        found = [
            prefix
            for slot in free
            if (held := self._held.get(slot)) is not None
            and (prefix := _usable(slot, held.common(wanted), images, sequences)) is not None
        ]
        return max(found, key=lambda prefix: prefix.tokens, default=None)


def _held(prompt: Encoded, ids: Sequence[int], tokens: int) -> _Held:
    images: dict[int, tuple[Hashable, ...]] = {}
    for position, key in zip(prompt.chunk.image_positions, prompt.keys, strict=True):
        if position < tokens:
            images[position] = (*images.get(position, ()), key)
    return _Held(np.array([*prompt.chunk.ids, *ids][:tokens], dtype=np.int64), images)


def _usable(slot: int, common: int, images: Sequence[int], sequences: KVBatch) -> Prefix | None:
    """The most of ``common`` tokens that a slot can be cut back to: all, or those before the last image among
    them, which opens a window of its own."""
    before = bisect_right(images, common)
    for tokens in (common, *images[max(before - 1, 0) : before]):
        before_image = tokens in images
        if tokens >= LEAST_TOKENS and sequences.can_truncate(slot, tokens, before_image=before_image):
            return Prefix(slot, tokens, before_image)
    return None
