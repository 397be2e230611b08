"""Continuous batching: a fixed number of slots whose sequences (answers, live streams) run in one forward.

A sequence allocates a slot, which holds its KV cache and sampler state, and frees it when it is done.

Shape suffixes: B slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from casa_core.decoding.kv_batch import KVBatch
from casa_core.decoding.kv_cache import TextBounds
from casa_core.decoding.plan import SequenceState, TokenChunk
from casa_core.decoding.snapshot import SequenceSnapshot
from casa_core.engine.requests import SamplingParams
from casa_core.engine.sampling import Sampler
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration


class SlotPool:
    """B slots of one model, each for one sequence. Calls are not thread-safe.

    Args:
        model: In evaluation mode, on its device.
        bounds: Bounds of each slot's text KV; ``None``: it grows with the text.
    """

    def __init__(
        self, model: CasaForConditionalGeneration, size: int, *, bounds: TextBounds | None = None
    ) -> None:
        self.model = model
        self.sequences = KVBatch(model, size, bounds)
        vocabulary = model.config.text_config.vocab_size
        self._sampler = Sampler(size, vocabulary, device=model.device)
        self._free = list(range(size))

    @property
    def size(self) -> int:
        """B."""
        return self.sequences.size

    @property
    def free_slots(self) -> int:
        """Number of slots that can be allocated."""
        return len(self._free)

    def allocate(self, params: SamplingParams, *, stop_ids: Sequence[int] = ()) -> int:
        """Allocate an empty slot.

        Args:
            params: Sampling settings of its sequence.
            stop_ids: Tokens that end its answer or caption.

        Raises:
            DataError: If every slot is taken.
        """
        if not self._free:
            raise DataError(
                f"All {self.size} slots are taken.",
                "Each answer or stream needs its own.",
                "Wait until one is free, or make a larger `SlotPool`.",
            )
        slot = self._free.pop(0)
        self._sampler.set_slot(slot, params, stop_ids=stop_ids)
        return slot

    def free(self, slot: int) -> None:
        """Free a slot and drop its KV caches; the memory is released once all slots are free."""
        assert slot not in self._free, "the slot is free already"
        self._free.append(slot)
        if self.free_slots == self.size:
            self.sequences = KVBatch(self.model, self.size, self.sequences.bounds)
        else:
            self.sequences.reset(slot)

    def state(self, slot: int) -> SequenceState:
        """Counts and current window of the slot's sequence."""
        return self.sequences.states[slot]

    def kv_length(self, slot: int) -> int:
        """Tokens in the slot's text KV (for insertion, image tokens too)."""
        return self.sequences.text.lengths[slot]

    def step(self, chunks: Mapping[int, TokenChunk]) -> dict[int, int]:
        """Append tokens to some slots in one forward, and choose the token that follows in each.

        Args:
            chunks: Slot → its new tokens; the other slots stay as they are.

        Returns:
            Slot → the chosen token, which is *not* appended yet.

        Raises:
            DataError: If the tokens do not fit the text KV's bounds.
            LogitsError: If a slot's logits hold no token to choose.
        """
        logits_BV = self.sequences.extend([chunks.get(slot) for slot in range(self.size)])
        active = [slot in chunks for slot in range(self.size)]
        active_B = None if all(active) else torch.tensor(active, device=logits_BV.device)
        tokens = self._sampler.read(self._sampler.choose(logits_BV, active_B))
        return {slot: tokens[slot] for slot in chunks}

    def snapshot(self, slot: int) -> tuple[SequenceSnapshot, dict[str, torch.Tensor]]:
        """Copies, in main memory, of a slot's sequence and of its sampler state (random state included)."""
        sampler = {name: tensor.cpu() for name, tensor in self._sampler.slot_state(slot).items()}
        return self.sequences.snapshot(slot), sampler

    def restore(self, slot: int, sequence: SequenceSnapshot, sampler: Mapping[str, torch.Tensor]) -> None:
        """Load a snapshot into an allocated slot, which then continues with the same tokens."""
        self.sequences.restore(slot, sequence)
        device = self.model.device
        self._sampler.load_slot(slot, {name: tensor.to(device) for name, tensor in sampler.items()})
