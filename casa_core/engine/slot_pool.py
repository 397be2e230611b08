"""Seats for sequences that run together: what each remembers, and how its next token is chosen.

Answers and live streams sit side by side; each leaves when it is done and its seat is free for the next.

Shape suffixes: B seats, V vocabulary.
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
    """B seats over one model.

    Calls are not thread-safe, like the engine's.

    Args:
        model: In evaluation mode, on its device.
        size: B.
        bounds: Bounds of every seat's text KV; ``None``: it grows with the text.
    """

    def __init__(
        self, model: CasaForConditionalGeneration, size: int, *, bounds: TextBounds | None = None
    ) -> None:
        self.model = model
        self.sequences = KVBatch(model, size, bounds)
        vocabulary = model.config.text_config.vocab_size
        self._chooser = Sampler(size, vocabulary, device=model.device)
        self._free = list(range(size))

    @property
    def size(self) -> int:
        """B."""
        return self.sequences.size

    @property
    def free(self) -> int:
        """Seats nobody sits in."""
        return len(self._free)

    def take(self, params: SamplingParams, *, stop_ids: Sequence[int] = ()) -> int:
        """Sit down: a free seat, empty and set to these sampling settings.

        Raises:
            DataError: If every seat is taken.
        """
        if not self._free:
            raise DataError(
                f"all {self.size} seats are taken",
                "each answer or stream needs its own",
                "wait, or open more",
            )
        seat = self._free.pop(0)
        self._chooser.set_row(seat, params, stop_ids=stop_ids)
        return seat

    def leave(self, seat: int) -> None:
        """Get up: the seat's memory is dropped."""
        assert seat not in self._free, "a seat is left once"
        self._free.append(seat)
        if self.free == self.size:
            # Nobody is left: give the memory back instead of keeping it for the next.
            self.sequences = KVBatch(self.model, self.size, self.sequences.bounds)
        else:
            self.sequences.reset(seat)

    def state(self, seat: int) -> SequenceState:
        """What the seat's sequence remembers, keys and values apart."""
        return self.sequences.states[seat]

    def held(self, seat: int) -> int:
        """Tokens in the seat's text KV (for insertion image tokens too)."""
        return self.sequences.text.lengths[seat]

    def step(self, extensions: Mapping[int, TokenChunk]) -> dict[int, int]:
        """Append to some seats in one forward, and choose the token that follows in each.

        Args:
            extensions: Seat → its new tokens; the other seats stay as they are.

        Returns:
            Seat → the chosen token, which is *not* appended yet.
        """
        seats = range(self.size)
        logits_BV = self.sequences.extend([extensions.get(seat) for seat in seats])
        active = [seat in extensions for seat in seats]
        active_B = None if all(active) else torch.tensor(active, device=logits_BV.device)
        tokens = self._chooser.read(self._chooser.choose(logits_BV, active_B))
        return {seat: tokens[seat] for seat in extensions}

    def snapshot(self, seat: int) -> tuple[SequenceSnapshot, dict[str, torch.Tensor]]:
        """Everything a seat remembers: its sequence, and its sampling with the random state."""
        chooser = {name: tensor.cpu() for name, tensor in self._chooser.row_state(seat).items()}
        return self.sequences.snapshot(seat), chooser

    def restore(self, seat: int, sequence: SequenceSnapshot, chooser: Mapping[str, torch.Tensor]) -> None:
        """Put a snapshot into a taken seat: it goes on with the same next tokens."""
        self.sequences.restore(seat, sequence)
        device = self.model.device
        self._chooser.load_row(seat, {name: tensor.to(device) for name, tensor in chooser.items()})
