"""Continuous batching: a fixed number of slots whose sequences (answers, live streams) run in one forward.

A sequence allocates a slot, which holds its KV cache and sampler state, and frees it when it is done.

Shape suffixes: B slots, A those that a step extends, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.graphed_step import GraphedStep
from casa_core.decoding.kv_batch import KVBatch, Room
from casa_core.decoding.plan import SequenceState, TokenChunk
from casa_core.decoding.snapshot import SequenceSnapshot
from casa_core.engine.requests import SamplingParams, TokenLogprob
from casa_core.engine.sampling import LogitsError, Sampler, token_logprob
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration

_GREEDY = SamplingParams(seed=0)


class Chosen(NamedTuple):
    """What a forward has chosen, by slot.

    Attributes:
        tokens: Not appended yet.
        faults: What is wrong with the logits of the others.
        logprobs: The tokens' own, where a sequence asked for them.
    """

    tokens: dict[int, int]
    faults: dict[int, str]
    logprobs: dict[int, TokenLogprob]


class SlotPool:
    """B slots of one model, each for one sequence. Calls are not thread-safe.

    Args:
        model: In evaluation mode, on its device.
        bounds: Bounds of each slot's text KV; ``None``: it grows with the text.
        room: What is allocated for each slot at once.
        decode: Runs the steps in which every sequence has one new token; by default the model runs them too.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        size: int,
        *,
        bounds: TextBounds | None = None,
        room: Room | None = None,
        decode: DecodeStep | GraphedStep | None = None,
    ) -> None:
        self.model = model
        self.sequences = KVBatch(model, size, bounds, room or Room(), decode)
        vocabulary = model.config.text_config.vocab_size
        self._sampler = Sampler(size, vocabulary, device=model.device)
        self._free = list(range(size))
        self._named: dict[int, int] = {}  # slots whose tokens have log-probabilities, of so many more tokens
        self._warm: dict[int, None] = {}  # free slots that still hold their last sequence, oldest first

    @property
    def size(self) -> int:
        """B."""
        return self.sequences.size

    @property
    def free_slots(self) -> int:
        """Number of slots that can be allocated."""
        return len(self._free)

    def allocate(
        self,
        params: SamplingParams,
        *,
        stop_ids: Sequence[int] = (),
        bounds: TextBounds | None = None,
        warm: int | None = None,
    ) -> int:
        """Allocate an empty slot.

        Args:
            params: Sampling settings of its sequence.
            stop_ids: Tokens that end its answer or caption.
            bounds: Bounds of its text KV; by default the pool's.
            warm: A free slot to continue, whose sequence is still there.

        Raises:
            DataError: If every slot is taken.
        """
        if not self._free:
            raise DataError(
                f"All {self.size} slots are taken.",
                "Each answer or stream needs its own.",
                "Wait until one is free, or make a larger `SlotPool`.",
            )
        slot = self._next_free() if warm is None else warm
        self._sampler.set_slot(slot, params, stop_ids=stop_ids)  # first: it may refuse the settings
        if params.logprobs is not None:
            self._named[slot] = params.logprobs
        self._free.remove(slot)
        self._warm.pop(slot, None)
        if warm is None:
            self.sequences.reset(slot)
        self.sequences.row_bounds[slot] = bounds or self.sequences.bounds
        return slot

    def _next_free(self) -> int:
        """An empty slot, neighbours first as they are read without a copy, or the one left longest ago."""
        empty = [slot for slot in self._free if slot not in self._warm]
        return min(empty) if empty else next(iter(self._warm))

    def free(self, slot: int, *, keep: bool = False, broken: bool = False) -> None:
        """Free a slot; its memory serves the next sequence in it.

        Args:
            keep: Leave its sequence there until the slot is allocated again.
            broken: Its caches may hold numbers that are not finite.
        """
        assert slot not in self._free, "the slot is free already"
        self._free.append(slot)
        self._named.pop(slot, None)
        self._sampler.set_slot(slot, _GREEDY)  # what it asked for must not slow down the others
        if keep:
            self._warm[slot] = None
        else:
            self.sequences.reset(slot, erase=broken)

    @property
    def warm_slots(self) -> list[int]:
        """Free slots whose sequences are still there."""
        return list(self._warm)

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
        chosen = self.run(chunks)
        if chosen.faults:
            raise LogitsError(chosen.faults)
        return chosen.tokens

    def run(self, chunks: Mapping[int, TokenChunk], choose: Collection[int] | None = None) -> Chosen:
        """As :meth:`step`, but a slot without a token to choose does not keep the others from theirs.

        Args:
            choose: The slots to choose a token for; all of ``chunks`` by default.
        """
        slots = sorted(chunks)
        logits_AV = self.sequences.extend([chunks.get(slot) for slot in range(self.size)])
        if choose is not None and len(choose) < len(slots):
            chosen = [number for number, slot in enumerate(slots) if slot in choose]
            slots = [slots[number] for number in chosen]
            logits_AV = logits_AV[chosen]
        if not slots:
            return Chosen({}, {}, {})
        read, faults = self._sampler.read_some(self._sampler.choose_some(logits_AV, slots), slots)
        tokens = {slot: token for slot, token in zip(slots, read, strict=True) if slot not in faults}
        logprobs = {
            slot: token_logprob(logits_V, tokens[slot], self._named[slot])
            for slot, logits_V in zip(slots, logits_AV, strict=True)
            if slot in self._named and slot in tokens
        }
        return Chosen(tokens, faults, logprobs)

    def warm_up(self, prompts: Sequence[TokenChunk]) -> None:
        """Run every kind of decode step once, after each of some prompts: what is compiled or recorded when
        it first occurs, is then. All slots are free before and after.

        A kind is one sequence or several, in the first slots or others; with graphs, each power of two.

        Args:
            prompts: Those with images first: they make the caches as they will be.
        """
        firsts = [range(2**power) for power in range(self.size.bit_length()) if 2**power <= self.size]
        for prompt in prompts:
            slots = [self.allocate(_GREEDY) for _ in range(self.size)]
            self.run(dict.fromkeys(slots, prompt))
            for rows in [*firsts, range(self.size), range(1, 2), range(1, 3)]:
                chunks = {row: TokenChunk([prompt.ids[-1]]) for row in rows if row < self.size}
                if chunks:
                    self.run(chunks)
            for slot in slots:
                self.free(slot)

    def snapshot(self, slot: int) -> tuple[SequenceSnapshot, dict[str, torch.Tensor]]:
        """Copies, in main memory, of a slot's sequence and of its sampler state (random state included)."""
        sampler = {name: tensor.cpu() for name, tensor in self._sampler.slot_state(slot).items()}
        return self.sequences.snapshot(slot), sampler

    def restore(self, slot: int, sequence: SequenceSnapshot, sampler: Mapping[str, torch.Tensor]) -> None:
        """Load a snapshot into an allocated slot, which then continues with the same tokens."""
        self.sequences.restore(slot, sequence)
        device = self.model.device
        self._sampler.load_slot(slot, {name: tensor.to(device) for name, tensor in sampler.items()})
