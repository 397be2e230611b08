"""Logits processors: repetition penalty, no-repeat n-grams and stop-token bias, each with per-slot settings.

The official live captioner runs an exponential-moving-average repetition penalty, a windowed no-repeat n-gram
rule and a stop-token bias, but publishes none of their formulas; those below are ours. They are applied in
this order, for token v of a slot:

- **Repetition penalty**: ``logit_v ← logit_v − repetition_penalty · e_v``. After each generated token w,
  ``e ← repetition_decay · e + onehot(w)``: the moving average without its factor (1 − decay), so a token's
  logit falls by ``repetition_penalty`` nats at once, whatever the decay, and a decay of 1 counts occurrences.
  Subtracting, unlike dividing, does not depend on where the logits' zero lies.
- **Stop bias**: ``logit_v ← logit_v + stop_bias`` for each of the slot's stop tokens.
- **No-repeat n-gram**: ``logit_v ← −inf`` where the slot's last n − 1 tokens and v make an n-gram that lies
  wholly within its last ``no_repeat_window`` tokens.

A slot's *generated* tokens are those chosen for it, without its stop tokens: silence is no repetition, so a
stop token is neither penalised nor forbidden, is not part of the window and does not decay the average, and
an n-gram may span the frames of a stream. The prompt counts only where it is given as ``history``.

A step consists of tensor operations of known shapes; nothing is read back to the host.

Shape suffixes: B slots, V vocabulary, W tokens remembered, S stop tokens, K tokens of the longest
n-gram, L tokens of a history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.decoding.slot_tensors import Column, SlotTensors
from casa_core.engine.requests import SamplingParams
from casa_core.errors import DataError

NO_TOKEN = -1  # padding of token windows and stop lists; no token has this id


def penalise_repeats(
    logits_BV: torch.Tensor, average_BV: torch.Tensor, strength_B: torch.Tensor
) -> torch.Tensor:
    """Logits minus ``strength_B`` times the moving average of each token's occurrences."""
    return logits_BV - average_BV * strength_B[:, None]


def bias_stops(logits_BV: torch.Tensor, stops_BS: torch.Tensor, bias_B: torch.Tensor) -> torch.Tensor:
    """Logits with the slot's bias added to its stop tokens; ``stops_BS`` is padded with ``NO_TOKEN``."""
    # The padding adds nothing to token 0.
    bias_BS = torch.where(stops_BS >= 0, bias_B[:, None], 0.0)
    return logits_BV.scatter_add(1, stops_BS.clamp(min=0), bias_BS)


def forbid_repeats(
    logits_BV: torch.Tensor,
    recent_BW: torch.Tensor,
    size_B: torch.Tensor,
    window_B: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Logits with −inf for tokens that would complete an n-gram again.

    Args:
        logits_BV: float32.
        recent_BW: Generated tokens, the newest last, padded in front with ``NO_TOKEN``; W ≥ ``longest``.
        size_B: Length of the slot's n-grams; 0 forbids nothing.
        window_B: How many of the last tokens count, at most W.
        longest: K, the largest of ``size_B``.
    """
    width = recent_BW.shape[1]
    device = recent_BW.device
    # grams_BWK[:, w] are the K tokens up to and including token w, oldest first. A start with padding in it
    # equals the tail only at the tail's own position, which no token follows.
    grams_BWK = pad(recent_BW, (longest - 1, 0), value=NO_TOKEN).unfold(1, longest, 1)
    tail_BK = recent_BW[:, width - (longest - 1) :]
    same_BWK = grams_BWK[:, :, :-1] == tail_BK[:, None]
    age_K = torch.arange(longest - 1, 0, -1, device=device)  # tokens before the last of the n-gram
    beyond_BK = age_K >= size_B[:, None]
    starts_BW = torch.arange(width, device=device) - (size_B[:, None] - 1)
    repeats_BW = (
        (same_BWK | beyond_BK[:, None]).all(-1)
        & (recent_BW >= 0)
        & (starts_BW >= width - window_B[:, None])
        & (size_B[:, None] > 0)
    )
    # The smaller of logit and ∓inf, rather than a sum: no infinity meets its opposite and makes a NaN.
    limit_BW = torch.where(repeats_BW, -torch.inf, torch.inf).to(logits_BV.dtype)
    return logits_BV.scatter_reduce(1, recent_BW.clamp(min=0), limit_BW, "amin")


_SETTINGS = {
    "repetition_penalty": Column(torch.float32, 0.0),
    "repetition_decay": Column(torch.float32, 1.0),
    "no_repeat_ngram_size": Column(torch.int64, 0),
    "no_repeat_window": Column(torch.int64, 0),
    "stop_bias": Column(torch.float32, 0.0),
    "stop_ids": Column(torch.int64, NO_TOKEN, width=1),
}
_MEMORY = {"recent": Column(torch.int64, NO_TOKEN, width=0)}


@dataclass(frozen=True, slots=True)
class _Uses:
    """Which processors are in use; held on the host, so that unused ones are skipped."""

    penalty: bool = False
    bias: bool = False
    longest: int = 0


class LogitsProcessors:
    """The logits processors of B slots, with each slot's settings and generated tokens.

    A slot's result depends on that slot alone; the others only decide which operations run.
    """

    def __init__(self, slots: int, vocabulary: int, *, device: str | torch.device = "cpu") -> None:
        self.vocabulary = vocabulary
        self._tensors = SlotTensors(slots, {**_SETTINGS, **_MEMORY}, device)
        # (B, V), allocated once a slot uses the penalty.
        self._average = SlotTensors(slots, {"said_average": Column(torch.float32, 0.0, width=0)}, device)
        self._uses = [_Uses()] * slots

    @property
    def in_use(self) -> bool:
        """Whether any slot uses a processor."""
        return self._joint() != _Uses()

    @property
    def layout(self) -> tuple[object, ...]:
        """Which operations a step runs, on which tensors; a CUDA graph is valid while this is unchanged."""
        whole = self._joint()
        return whole, len(self._uses), self._tensors["recent"].shape[1], self._tensors["stop_ids"].shape[1]

    def set_slot(
        self, slot: int, params: SamplingParams, *, stop_ids: Sequence[int] = (), history: Sequence[int] = ()
    ) -> None:
        """Give a slot new settings and a history: arguments as in ``Sampler.set_slot``.

        Replayed and chosen tokens give the same average up to rounding.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        for token in (*stop_ids, *history):
            if not 0 <= token < self.vocabulary:
                raise DataError(
                    f"Token {token} is outside the vocabulary of {self.vocabulary}.",
                    "Stop tokens and history are ids of the model's own tokenizer.",
                    "Encode them with the checkpoint's tokenizer.",
                )
        own, tensors = tuple(dict.fromkeys(stop_ids)), self._tensors
        tensors.widen("stop_ids", len(own))
        tensors.reset(slot)
        for name in _SETTINGS:
            if name != "stop_ids":
                tensors[name][slot] = getattr(params, name)
        for position, token in enumerate(own):
            tensors["stop_ids"][slot, position] = token
        self._uses[slot] = _Uses(
            params.repetition_penalty > 0, params.stop_bias != 0 and bool(own), params.no_repeat_ngram_size
        )
        self._make_room(slot, params.no_repeat_window)
        self.reset(slot)
        self._replay(slot, params, [token for token in history if token not in own])

    def reset(self, slot: int) -> None:
        """Clear a slot's history; its settings stay."""
        self._tensors.reset(slot, list(_MEMORY))
        self._average.reset(slot)

    def add_slots(self, count: int) -> None:
        """Append ``count`` slots without any processing."""
        self._tensors.add_slots(count)
        self._average.add_slots(count)
        self._uses += [_Uses()] * count

    @torch.no_grad()
    def apply(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Process logits out of place; returns the given tensor itself where no slot uses a processor."""
        uses, tensors = self._joint(), self._tensors
        if not self.in_use:
            return logits_BV
        logits_BV = logits_BV.float()
        if uses.penalty:
            average_BV = self._average["said_average"]
            logits_BV = penalise_repeats(logits_BV, average_BV, tensors["repetition_penalty"])
        if uses.bias:
            logits_BV = bias_stops(logits_BV, tensors["stop_ids"], tensors["stop_bias"])
        if uses.longest:
            logits_BV = forbid_repeats(
                logits_BV,
                tensors["recent"],
                tensors["no_repeat_ngram_size"],
                tensors["no_repeat_window"],
                uses.longest,
            )
        return logits_BV

    @torch.no_grad()
    def observe(self, tokens_B: torch.Tensor, active_B: torch.Tensor | None = None) -> None:
        """Add the token of each slot to its history, unless it is a stop token.

        Args:
            tokens_B: int64, ids of the vocabulary.
            active_B: bool; other slots keep their history. All slots by default.
        """
        uses, tensors = self._joint(), self._tensors
        if not (uses.penalty or uses.longest):
            return
        counted_B = ~(tokens_B[:, None] == tensors["stop_ids"]).any(1)
        if active_B is not None:
            counted_B = counted_B & active_B
        if uses.penalty:
            average_BV = self._average["said_average"]
            average_BV.mul_(torch.where(counted_B, tensors["repetition_decay"], 1.0)[:, None])
            average_BV.scatter_add_(1, tokens_B[:, None], counted_B.float()[:, None])
        if uses.longest:
            recent_BW = tensors["recent"]
            shifted_BW = torch.cat([recent_BW[:, 1:], tokens_B[:, None]], dim=1)
            recent_BW.copy_(torch.where(counted_B[:, None], shifted_BW, recent_BW))

    def slot_state(self, slot: int) -> dict[str, torch.Tensor]:
        """Copies of a slot's settings and history, on the device; the average only where it is in use."""
        average = self._average.slot_state(slot) if self._uses[slot].penalty else {}
        return self._tensors.slot_state(slot) | average

    def load_slot(self, slot: int, state: Mapping[str, torch.Tensor]) -> None:
        """Load the :meth:`slot_state` of any slot, of these or other processors.

        Raises:
            DataError: If the state does not fit, or is of another vocabulary.
        """
        average = state.get("said_average")
        if average is not None and average.shape != (self.vocabulary,):
            raise DataError(
                f"The slot's state is of a vocabulary of {average.numel()} tokens, not of {self.vocabulary}.",
                "Its moving average has one entry per token of the vocabulary.",
                "Load it where the same model runs.",
            )
        self._tensors.load_slot(slot, state)
        tensors = self._tensors
        self._uses[slot] = _Uses(
            bool(tensors["repetition_penalty"][slot] > 0),
            bool((tensors["stop_bias"][slot] != 0) & (tensors["stop_ids"][slot] >= 0).any()),
            int(tensors["no_repeat_ngram_size"][slot]),
        )
        self._make_room(slot, tensors["recent"].shape[1])
        if self._uses[slot].penalty:
            self._average.load_slot(slot, state)

    def _joint(self) -> _Uses:
        return _Uses(
            any(uses.penalty for uses in self._uses),
            any(uses.bias for uses in self._uses),
            max((uses.longest for uses in self._uses), default=0),
        )

    def _make_room(self, slot: int, window: int) -> None:
        if self._uses[slot].penalty:
            self._average.widen("said_average", self.vocabulary)
        if self._uses[slot].longest:
            self._tensors.widen("recent", window)

    def _replay(self, slot: int, params: SamplingParams, history: Sequence[int]) -> None:
        if not history:
            return
        device = self._tensors.device
        tokens_L = torch.tensor(history, dtype=torch.int64, device=device)
        if self._uses[slot].penalty:
            age_L = torch.arange(len(history) - 1, -1, -1, dtype=torch.float32, device=device)
            self._average["said_average"][slot].index_add_(0, tokens_L, params.repetition_decay**age_L)
        if self._uses[slot].longest:
            newest = tokens_L[-self._tensors["recent"].shape[1] :]
            self._tensors["recent"][slot, -len(newest) :] = newest
