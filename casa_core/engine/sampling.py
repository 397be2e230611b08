"""Sampling of the next token (temperature, top-k, top-p, min-p, seeds) without waiting for the device.

Random numbers are counter-based: a slot's n-th draw is a hash of its key and n (SplitMix64; Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014). Two integers are its whole random state, and
no other slot influences it.

Shape suffixes: B slots, A some of them, V vocabulary, S steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.decoding.slot_tensors import Column, SlotTensors
from casa_core.engine.logits import NO_TOKEN, LogitsProcessors
from casa_core.engine.requests import SamplingParams, TokenLogprob
from casa_core.errors import CasaError, DataError


class LogitsError(CasaError, ArithmeticError):
    """Slots whose logits hold no token to choose.

    Args:
        slots: Slot → what is wrong with it. The other slots of the batch are unaffected.
    """

    def __init__(self, slots: Mapping[int, str]) -> None:
        self.slots = dict(slots)
        super().__init__(
            "No token can be chosen: "
            + ", ".join(f"slot {slot}: {fault}" for slot, fault in self.slots.items())
            + ".",
            "The model's weights or its input are broken, or every token was forbidden.",
            "End these slots (`set_slot` or `reset_slot` clears the fault); if it comes back, check the "
            "weights and the compute type.",
        )
        self.args = (self.slots,)


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """The sampling settings of each slot. Fields as in :class:`~casa_core.engine.requests.SamplingParams`.

    Attributes:
        temperature_B, top_p_B, min_p_B: Floating point.
        top_k_B: int64.
        draws: False only if every temperature is 0; no random number is computed then.
        truncates: False only if no slot drops tokens; nothing is sorted then.
    """

    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    top_k_B: torch.Tensor
    min_p_B: torch.Tensor
    draws: bool = True
    truncates: bool = True


def sample(logits_BV: torch.Tensor, rules: SamplingTensors, uniform_B: torch.Tensor) -> torch.Tensor:
    """Choose one token per slot (B,), int64; among equally likely ones the greedy choice is the lowest id.

    Tokens are dropped in this order, each rule applied to what the one before left: ``top_k``, then ``top_p``
    (a token stays while the mass *before* it is below top_p, so the most likely one always does), then
    ``min_p``. Among equally likely tokens the lower ids are kept first.

    A slot gets ``NO_TOKEN`` where its logits hold NaN or +inf, or where all are −inf.

    Args:
        logits_BV: Any floating point type.
        rules: The slots' sampling settings.
        uniform_B: One number in [0, 1) per slot, float64: the point of the cumulative distribution drawn.
    """
    tokens_B, largest_B = likeliest(logits_BV)
    if rules.draws:
        random_B = rules.temperature_B > 0
        # Shifted by the largest first: a small temperature then makes no infinity but −inf, probability 0.
        shift_B = torch.where(largest_B.isfinite(), largest_B, 0.0)
        scaled_BV = logits_BV.float() - shift_B.float()[:, None]
        scaled_BV = scaled_BV / torch.where(random_B, rules.temperature_B, 1.0)[:, None]
        if rules.truncates:
            scaled_BV = scaled_BV.masked_fill(_dropped(scaled_BV, rules), -torch.inf)
        # The draw is scaled by the slot's own total, so the weights need no normalising.
        mass_BV = scaled_BV.exp().cumsum(-1, dtype=torch.float64)
        target_B1 = uniform_B[:, None] * mass_BV[:, -1:]
        drawn_B1 = torch.searchsorted(mass_BV, target_B1, right=True)
        tokens_B = torch.where(random_B, drawn_B1[:, 0], tokens_B)
    return torch.where(largest_B.isfinite(), tokens_B, NO_TOKEN)


def likeliest(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest token (B,), the lowest id among equals, and its logit (B,): NaN if any of them is."""
    tokens_B = logits_BV.float().argmax(-1)  # on processors argmax of bf16 takes four times as long
    return tokens_B, logits_BV.gather(-1, tokens_B[:, None])[:, 0]


def token_logprob(logits_V: torch.Tensor, token: int, most: int) -> TokenLogprob:
    """A token's log-probability, and those of the ``most`` likeliest. This waits for the device."""
    logprob_V = logits_V.float().log_softmax(-1)
    top = logprob_V.topk(min(most, len(logprob_V)))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprob(token, float(logprob_V[token]), top=tuple(TokenLogprob(*one) for one in likeliest))


def _dropped(scaled_BV: torch.Tensor, rules: SamplingTensors) -> torch.Tensor:
    """(B, V) true for tokens that top-k, top-p or min-p leave out; ``scaled_BV`` has its largest at 0."""
    ordered_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(scaled_BV.shape[-1], device=scaled_BV.device)
    dropped_BV = (rules.top_k_B[:, None] > 0) & (rank_V >= rules.top_k_B[:, None])
    mass_BV = ordered_BV.exp().masked_fill(dropped_BV, 0.0).cumsum(-1, dtype=torch.float64)
    before_BV = pad(mass_BV[:, :-1], (1, 0))
    top_p_B1 = rules.top_p_B[:, None]
    dropped_BV |= (top_p_B1 < 1) & (before_BV >= top_p_B1 * mass_BV[:, -1:])
    # A probability is min_p times the largest where the shifted logit is the logarithm of min_p.
    dropped_BV |= ordered_BV < rules.min_p_B.log()[:, None]
    dropped_BV[:, 0] = False
    return torch.zeros_like(dropped_BV).scatter(1, order_BV, dropped_BV)


_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def random_key(seed: int | None) -> int:
    """The key of a seed's random numbers, a signed 64-bit integer; ``None`` draws one from the system."""
    bits = secrets.randbits(64) if seed is None else seed & _BITS
    bits = ((bits ^ (bits >> 30)) * _MIX[0]) & _BITS
    bits = ((bits ^ (bits >> 27)) * _MIX[1]) & _BITS
    return _signed(bits ^ (bits >> 31))


def uniform(key_B: torch.Tensor, step_B: torch.Tensor) -> torch.Tensor:
    """The random number of each slot at its step (B,), float64, uniform on (0, 1) in steps of 2⁻⁵².

    Args:
        key_B: int64, from :func:`random_key`.
        step_B: int64, how many draws the slot made before.
    """
    # 64-bit multiplication wraps around, as SplitMix64 requires.
    bits_B = key_B + (step_B + 1) * _signed(_GOLDEN)
    bits_B = (bits_B ^ _shifted(bits_B, 30)) * _signed(_MIX[0])
    bits_B = (bits_B ^ _shifted(bits_B, 27)) * _signed(_MIX[1])
    bits_B = bits_B ^ _shifted(bits_B, 31)
    return (_shifted(bits_B, 12).double() + 0.5) * 2.0**-52


def _shifted(bits_B: torch.Tensor, count: int) -> torch.Tensor:
    """Logical right shift; torch's own shift of a signed integer repeats the sign bit."""
    return (bits_B >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


_COLUMNS = {
    "temperature": Column(torch.float32, 0.0),
    "top_p": Column(torch.float64, 1.0),
    "top_k": Column(torch.int64, 0),
    "min_p": Column(torch.float32, 0.0),
    "random_key": Column(torch.int64, 0),
    "step": Column(torch.int64, 0),
    "fault": Column(torch.int64, 0),
}
_FAULTS = {1: "its logits hold NaN or +inf", 2: "every token is forbidden (all logits are -inf)"}


class Sampler:
    """Chooses the tokens of B slots and keeps each slot's history and random state.

    :meth:`set_slot` assigns a slot to an answer or a stream. A slot's tokens depend only on its own logits,
    settings and history, not on its number or the other slots, and :meth:`slot_state` with :meth:`load_slot`
    moves it. Slots start greedy and without processors.

    :meth:`choose` never waits for the device; :meth:`read` brings tokens to the host and reports slots whose
    logits held nothing to choose.
    """

    def __init__(self, slots: int, vocabulary: int, *, device: str | torch.device = "cpu") -> None:
        self._processors = LogitsProcessors(slots, vocabulary, device=device)
        self._tensors = SlotTensors(slots, _COLUMNS, device)
        self._draws = [False] * slots
        self._truncates = [False] * slots

    @property
    def slots(self) -> int:
        """B."""
        return self._tensors.slots

    @property
    def layout(self) -> tuple[object, ...]:
        """Which operations a step runs, on which tensors; a CUDA graph is valid while this is unchanged."""
        return any(self._draws), any(self._truncates), *self._processors.layout

    def set_slot(
        self, slot: int, params: SamplingParams, *, stop_ids: Sequence[int] = (), history: Sequence[int] = ()
    ) -> None:
        """Assign a slot to a new answer or stream: its settings, no history, random numbers from the first.

        Args:
            params: Its settings; ``max_new_tokens`` and ``stop`` are left to the caller.
            stop_ids: Tokens that end its answer or caption.
            history: Tokens that count as generated, oldest first; a prompt counts only if given here.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        self._processors.set_slot(slot, params, stop_ids=stop_ids, history=history)
        self._tensors.reset(slot)
        for name in ("temperature", "top_p", "top_k", "min_p"):
            self._tensors[name][slot] = getattr(params, name)
        self._tensors["random_key"][slot] = random_key(params.seed)
        drops = params.top_p < 1 or params.top_k > 0 or params.min_p > 0
        self._set_uses(slot, params.temperature > 0, drops)

    def reset_slot(self, slot: int) -> None:
        """Start a slot over: settings and seed stay; history, draws and faults are cleared."""
        self._processors.reset(slot)
        self._tensors.reset(slot, ("step", "fault"))

    def add_slots(self, count: int) -> None:
        """Append ``count`` greedy slots; the others keep their state."""
        self._processors.add_slots(count)
        self._tensors.add_slots(count)
        self._draws += [False] * count
        self._truncates += [False] * count

    @torch.no_grad()
    def choose(self, logits_BV: torch.Tensor, active_B: torch.Tensor | None = None) -> torch.Tensor:
        """Choose one token per slot and add it to the slot's history.

        Args:
            logits_BV: Logits of the next token, any floating point type; not modified.
            active_B: bool; other slots get token 0 and keep their state. All slots by default.

        Returns:
            (B,) int64 on the device, each a valid token id; the id of a faulty slot has no meaning.
        """
        tensors = self._tensors
        largest_B = logits_BV.amax(-1)
        rules = SamplingTensors(
            tensors["temperature"],
            tensors["top_p"],
            tensors["top_k"],
            tensors["min_p"],
            draws=any(self._draws),
            truncates=any(self._truncates),
        )
        drawn_B = uniform(tensors["random_key"], tensors["step"])
        tokens_B = sample(self._processors.apply(logits_BV), rules, drawn_B)
        fault_B = torch.where(largest_B.isnan() | largest_B.isposinf(), 1, torch.where(tokens_B < 0, 2, 0))
        active_B = torch.ones_like(tokens_B, dtype=torch.bool) if active_B is None else active_B
        # A fault stays until the slot is set again, so that it is seen however late the tokens are read.
        tensors["fault"].copy_(torch.where(active_B & (tensors["fault"] == 0), fault_B, tensors["fault"]))
        good_B = active_B & (fault_B == 0)
        tokens_B = torch.where(good_B, tokens_B, 0)
        self._processors.observe(tokens_B, good_B)
        tensors["step"].add_(active_B)
        return tokens_B

    @torch.no_grad()
    def choose_some(self, logits_AV: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """:meth:`choose` for A slots, in the order of ``slots``; the others keep their state.

        Returns:
            (A,) int64 on the device.
        """
        slot_A = torch.tensor(slots, device=logits_AV.device)
        if any(self._draws) or self._processors.in_use:
            logits_BV = logits_AV.new_zeros(self.slots, logits_AV.shape[-1]).index_copy_(0, slot_A, logits_AV)
            active_B = torch.zeros(self.slots, dtype=torch.bool, device=logits_AV.device)
            return self.choose(logits_BV, active_B.index_fill_(0, slot_A, True)).index_select(0, slot_A)
        tokens_A, largest_A = likeliest(logits_AV)
        fault_A = torch.where(largest_A.isnan() | largest_A.isposinf(), 1, 2 * largest_A.isneginf())
        earlier_A = self._tensors["fault"].index_select(0, slot_A)
        self._tensors["fault"].index_copy_(0, slot_A, torch.where(earlier_A == 0, fault_A, earlier_A))
        self._tensors["step"].index_add_(0, slot_A, torch.ones_like(slot_A))
        return tokens_A

    def read_some(self, tokens_A: torch.Tensor, slots: Sequence[int]) -> tuple[list[int], dict[int, str]]:
        """Bring the tokens of :meth:`choose_some` to the host. This waits for the device.

        Returns:
            The tokens, and what is wrong with those of the ``slots`` that had nothing to choose.
        """
        both = torch.cat([self._tensors["fault"], tokens_A]).tolist()
        faults, tokens = both[: self.slots], both[self.slots :]
        return tokens, {slot: _FAULTS[faults[slot]] for slot in slots if faults[slot]}

    def read(self, tokens_B: torch.Tensor) -> list[int]:
        """Bring one step's tokens to the host. This waits for the device.

        Raises:
            LogitsError: If a slot had nothing to choose since it was set; ``slots`` names them.
        """
        return [step for (step,) in self.read_steps(tokens_B[:, None])]

    def read_steps(self, tokens_BS: torch.Tensor) -> list[list[int]]:
        """Bring the tokens of several steps to the host: one list per slot; otherwise as :meth:`read`."""
        both = torch.cat([self._tensors["fault"][:, None], tokens_BS], dim=1).tolist()
        faults = {slot: _FAULTS[fault] for slot, (fault, *_) in enumerate(both) if fault}
        if faults:
            raise LogitsError(faults)
        return [tokens for _, *tokens in both]

    def slot_state(self, slot: int) -> dict[str, torch.Tensor]:
        """Copies of a slot's settings, history and random state, as plain tensors on the device."""
        return self._processors.slot_state(slot) | self._tensors.slot_state(slot)

    def load_slot(self, slot: int, state: Mapping[str, torch.Tensor]) -> None:
        """Load a :meth:`slot_state` into any slot of any sampler of this vocabulary.

        Raises:
            DataError: If the state does not fit; the slot must then be set again.
        """
        self._processors.load_slot(slot, state)
        self._tensors.load_slot(slot, state)
        tensors = self._tensors
        drops = (tensors["top_p"][slot] < 1) | (tensors["top_k"][slot] > 0) | (tensors["min_p"][slot] > 0)
        self._set_uses(slot, bool(tensors["temperature"][slot] > 0), bool(drops))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """:meth:`slot_state` of every slot, named ``<slot>.<entry>``."""
        return {
            f"{slot}.{name}": tensor
            for slot in range(self.slots)
            for name, tensor in self.slot_state(slot).items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a :meth:`state_dict` of as many slots.

        Raises:
            DataError: If the state has another number of slots, or does not fit.
        """
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            slot, _, entry = name.partition(".")
            slots.setdefault(int(slot) if slot.isdecimal() else -1, {})[entry] = tensor
        if sorted(slots) != list(range(self.slots)):
            raise DataError(
                f"A state of slots {sorted(slots)} was given to a sampler of {self.slots} slots.",
                "Slots are numbered from 0; entries are named `<slot>.<entry>`.",
                "Load it into as many slots, or single slots with `load_slot`.",
            )
        for slot, own in slots.items():
            self.load_slot(slot, own)

    def _set_uses(self, slot: int, draws: bool, drops: bool) -> None:
        self._draws[slot] = draws
        self._truncates[slot] = draws and drops
