"""The beginnings of conversations that slots still hold, so that a further turn reads only what is new."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from casa_core.decoding.kv_batch import KVBatch
from casa_core.engine.image_encoder import Encoded

LEAST_TOKENS = 16
"""A shorter common beginning is read again: that costs less than to give up an empty slot's neighbourhood."""

Entry = tuple[int, tuple[Hashable, ...]]


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


class Prefixes:
    """What free slots hold: token ids, and the keys of the images before each."""

    def __init__(self) -> None:
        self._held: dict[int, list[Entry]] = {}

    def keep(self, slot: int, prompt: Encoded, ids: Sequence[int], tokens: int) -> None:
        """Remember what a finished answer's slot has read: ``tokens`` of its prompt and its own ``ids``."""
        self._held[slot] = [*_entries(prompt), *((token, ()) for token in ids)][:tokens]

    def forget(self, slot: int) -> None:
        """The slot is taken."""
        self._held.pop(slot, None)

    def find(self, prompt: Encoded, free: Sequence[int], sequences: KVBatch) -> Prefix | None:
        """The longest beginning of a prompt that one of the ``free`` slots holds and can continue."""
        wanted = _entries(prompt)
        found = [
            prefix
            for slot in free
            if slot in self._held
            and (prefix := _common(slot, self._held[slot], wanted, sequences)) is not None
        ]
        return max(found, key=lambda prefix: prefix.tokens, default=None)


def _entries(prompt: Encoded) -> list[Entry]:
    before: dict[int, tuple[Hashable, ...]] = {}
    for position, key in zip(prompt.chunk.image_positions, prompt.keys, strict=True):
        before[position] = (*before.get(position, ()), key)
    return [(token, before.get(position, ())) for position, token in enumerate(prompt.chunk.ids)]


def _common(slot: int, held: Sequence[Entry], wanted: Sequence[Entry], sequences: KVBatch) -> Prefix | None:
    # At least one token is read, as its logits are wanted.
    most = min(len(held), len(wanted) - 1)
    tokens = next((n for n in range(most) if held[n] != wanted[n]), most)
    while tokens >= LEAST_TOKENS:
        before_image = bool(wanted[tokens][1])
        if sequences.can_truncate(slot, tokens, before_image=before_image):
            return Prefix(slot, tokens, before_image)
        tokens -= 1
    return None
