"""How the next token is chosen: for batched answers and live streams alike, without waiting for the device.

A row's randomness is counted, not carried along: its n-th draw is a hash of its key and n (SplitMix64;
Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). Two integers are its whole
state, and no other row has a part in it.

Shape suffixes: B rows, V vocabulary, S steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.engine.logits import NO_TOKEN, LogitsProcessors
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_tensors import Column, SlotTensors
from casa_core.errors import CasaError, DataError


class LogitsError(CasaError, ArithmeticError):
    """Rows whose logits hold no token to choose.

    Args:
        rows: Row → what is wrong with it. The other rows of the batch are fine.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        self.rows = dict(rows)
        super().__init__(
            "no token can be chosen: " + ", ".join(f"row {row}: {fault}" for row, fault in self.rows.items()),
            "the model's weights or its input are broken, or every token was forbidden",
            "end these rows (`set_row` or `reset_row` clears the fault); if it comes back, check the weights "
            "and the compute type",
        )
        self.args = (self.rows,)


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """How each row draws. Fields as in :class:`~casa_core.engine.requests.SamplingParams`.

    Attributes:
        temperature_B, top_p_B, min_p_B: Floating point.
        top_k_B: int64.
        draws: False where the host knows that every temperature is 0; nothing random is computed then.
        truncates: False where the host knows that no row drops tokens; nothing is sorted then.
    """

    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    top_k_B: torch.Tensor
    min_p_B: torch.Tensor
    draws: bool = True
    truncates: bool = True


def sample(logits_BV: torch.Tensor, rules: SamplingTensors, uniform_B: torch.Tensor) -> torch.Tensor:
    """One token a row (B,), int64; of equally likely ones the greedy choice is the lowest.

    Tokens are dropped in this order, each rule looking at what the one before left: ``top_k``, then ``top_p``
    (a token stays while the mass *before* it is below top_p, so the most likely one always does), then
    ``min_p``. Among equally likely tokens the lower ids are kept first.

    A row gets ``NO_TOKEN`` where its logits hold NaN or +inf, or where all are −inf.

    Args:
        logits_BV: Any floating point type.
        rules: How each row draws.
        uniform_B: A number in [0, 1) for each row, float64: where in its distribution the draw falls.
    """
    largest_B = logits_BV.amax(-1)  # NaN where any is
    tokens_B = logits_BV.argmax(-1)
    if rules.draws:
        random_B = rules.temperature_B > 0
        # Shifted by the largest first: a small temperature then makes no infinity but −inf, probability 0.
        shift_B = torch.where(largest_B.isfinite(), largest_B, 0.0)
        scaled_BV = logits_BV.float() - shift_B.float()[:, None]
        scaled_BV = scaled_BV / torch.where(random_B, rules.temperature_B, 1.0)[:, None]
        if rules.truncates:
            scaled_BV = scaled_BV.masked_fill(_dropped(scaled_BV, rules), -torch.inf)
        # Each row falls where its number does in the sum of its own weights: exact, whatever their total.
        mass_BV = scaled_BV.exp().cumsum(-1, dtype=torch.float64)
        target_B1 = uniform_B[:, None] * mass_BV[:, -1:]
        drawn_B1 = torch.searchsorted(mass_BV, target_B1, right=True)
        tokens_B = torch.where(random_B, drawn_B1[:, 0], tokens_B)
    return torch.where(largest_B.isfinite(), tokens_B, NO_TOKEN)


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
    """The key of a seed's stream, a signed 64-bit number; ``None`` draws one from the system."""
    bits = secrets.randbits(64) if seed is None else seed & _BITS
    bits = ((bits ^ (bits >> 30)) * _MIX[0]) & _BITS
    bits = ((bits ^ (bits >> 27)) * _MIX[1]) & _BITS
    return _signed(bits ^ (bits >> 31))


def uniform(key_B: torch.Tensor, step_B: torch.Tensor) -> torch.Tensor:
    """The draw of each row at its step (B,), float64, evenly spread over (0, 1) in steps of 2⁻⁵².

    Args:
        key_B: int64, from :func:`random_key`.
        step_B: int64, how many draws the row made before.
    """
    # 64-bit multiplication wraps around, as the generator means it to.
    bits_B = key_B + (step_B + 1) * _signed(_GOLDEN)
    bits_B = (bits_B ^ _shifted(bits_B, 30)) * _signed(_MIX[0])
    bits_B = (bits_B ^ _shifted(bits_B, 27)) * _signed(_MIX[1])
    bits_B = bits_B ^ _shifted(bits_B, 31)
    return (_shifted(bits_B, 12).double() + 0.5) * 2.0**-52


def _shifted(bits_B: torch.Tensor, count: int) -> torch.Tensor:
    """Shifted right with zeros coming in; torch's own shift of a signed number repeats the sign."""
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
    """Chooses the tokens of B rows and remembers what each said and drew.

    A row is a seat: :meth:`set_row` gives it to an answer or a stream. What a row gets depends on its own
    logits, settings and past alone, so it may sit anywhere, beside anyone, and move by :meth:`row_state` and
    :meth:`load_row`. Rows start greedy and without processors.

    :meth:`choose` never waits for the device. Tokens come to the host by :meth:`read`, which reports rows
    whose logits held nothing to choose.

    Args:
        rows: B.
        vocabulary: V.
        device: Of the logits.
    """

    def __init__(self, rows: int, vocabulary: int, *, device: str | torch.device = "cpu") -> None:
        self._processors = LogitsProcessors(rows, vocabulary, device=device)
        self._rows = SlotTensors(rows, _COLUMNS, device)
        self._draws = [False] * rows
        self._truncates = [False] * rows

    @property
    def rows(self) -> int:
        """B."""
        return self._rows.rows

    @property
    def layout(self) -> tuple[object, ...]:
        """What a step runs, on what tensors: a recorded step (a CUDA graph) is valid while this stays."""
        return any(self._draws), any(self._truncates), *self._processors.layout

    def set_row(
        self, row: int, params: SamplingParams, *, stop_ids: Sequence[int] = (), history: Sequence[int] = ()
    ) -> None:
        """Seat an answer or a stream: its settings, nothing said yet, its random numbers from the first.

        Args:
            row: Which.
            params: Its settings; what ends an answer (``max_new_tokens``, ``stop``) is the caller's business.
            stop_ids: Tokens that end its answer or caption.
            history: Tokens that count as said, oldest first; the prompt does not unless given here.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        self._processors.set_row(row, params, stop_ids=stop_ids, history=history)
        self._rows.reset(row)
        for name in ("temperature", "top_p", "top_k", "min_p"):
            self._rows[name][row] = getattr(params, name)
        self._rows["random_key"][row] = random_key(params.seed)
        drops = params.top_p < 1 or params.top_k > 0 or params.min_p > 0
        self._know(row, params.temperature > 0, drops)

    def reset_row(self, row: int) -> None:
        """Begin a row again: its settings and seed stay, what it said, drew and failed is forgotten."""
        self._processors.reset(row)
        self._rows.reset(row, ("step", "fault"))

    def add_rows(self, count: int) -> None:
        """Append greedy rows; the others go on."""
        self._processors.add_rows(count)
        self._rows.add_rows(count)
        self._draws += [False] * count
        self._truncates += [False] * count

    @torch.no_grad()
    def choose(self, logits_BV: torch.Tensor, active_B: torch.Tensor | None = None) -> torch.Tensor:
        """Choose and remember one token a row.

        Args:
            logits_BV: Of the next token, any floating point type; left as they are.
            active_B: bool; other rows get token 0 and stay as they are. All rows by default.

        Returns:
            (B,) int64 on the device, each an id the model takes; what faulty rows get means nothing.
        """
        rows = self._rows
        largest_B = logits_BV.amax(-1)
        rules = SamplingTensors(
            rows["temperature"],
            rows["top_p"],
            rows["top_k"],
            rows["min_p"],
            draws=any(self._draws),
            truncates=any(self._truncates),
        )
        drawn_B = uniform(rows["random_key"], rows["step"])
        tokens_B = sample(self._processors.apply(logits_BV), rules, drawn_B)
        fault_B = torch.where(largest_B.isnan() | largest_B.isposinf(), 1, torch.where(tokens_B < 0, 2, 0))
        active_B = torch.ones_like(tokens_B, dtype=torch.bool) if active_B is None else active_B
        # A fault stays until the row is set anew, so that it is seen however late the tokens are read.
        rows["fault"].copy_(torch.where(active_B & (rows["fault"] == 0), fault_B, rows["fault"]))
        good_B = active_B & (fault_B == 0)
        tokens_B = torch.where(good_B, tokens_B, 0)
        self._processors.observe(tokens_B, good_B)
        rows["step"].add_(active_B)
        return tokens_B

    def read(self, tokens_B: torch.Tensor) -> list[int]:
        """Bring one step's tokens to the host. This waits for the device.

        Raises:
            LogitsError: If a row had nothing to choose, now or before; its ``rows`` says which.
        """
        return [step for (step,) in self.read_steps(tokens_B[:, None])]

    def read_steps(self, tokens_BS: torch.Tensor) -> list[list[int]]:
        """Bring the tokens of several steps to the host at once: a list a row. This waits for the device.

        Raises:
            LogitsError: If a row had nothing to choose, now or before; its ``rows`` says which.
        """
        both = torch.cat([self._rows["fault"][:, None], tokens_BS], dim=1).tolist()
        faults = {row: _FAULTS[fault] for row, (fault, *_) in enumerate(both) if fault}
        if faults:
            raise LogitsError(faults)
        return [tokens for _, *tokens in both]

    def row_state(self, row: int) -> dict[str, torch.Tensor]:
        """A row's settings and all it remembers: plain tensors on the device, copied."""
        return self._processors.row_state(row) | self._rows.row_state(row)

    def load_row(self, row: int, state: Mapping[str, torch.Tensor]) -> None:
        """Go on exactly where :meth:`row_state` was taken, in any row of any chooser of this vocabulary.

        Raises:
            DataError: If the state is not such a one; the row is then to be set anew.
        """
        self._processors.load_row(row, state)
        self._rows.load_row(row, state)
        rows = self._rows
        drops = (rows["top_p"][row] < 1) | (rows["top_k"][row] > 0) | (rows["min_p"][row] > 0)
        self._know(row, bool(rows["temperature"][row] > 0), bool(drops))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """:meth:`row_state` of every row, named ``<row>.<entry>``."""
        return {
            f"{row}.{name}": tensor
            for row in range(self.rows)
            for name, tensor in self.row_state(row).items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on exactly where :meth:`state_dict` was taken.

        Raises:
            DataError: If the state has another number of rows, or is no such state.
        """
        rows: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            row, _, entry = name.partition(".")
            rows.setdefault(int(row) if row.isdecimal() else -1, {})[entry] = tensor
        if sorted(rows) != list(range(self.rows)):
            raise DataError(
                f"a state of the rows {sorted(rows)} was given to {self.rows} rows",
                "rows are numbered from 0; entries are named `<row>.<entry>`",
                "load it into as many rows, or single rows with load_row",
            )
        for row, own in rows.items():
            self.load_row(row, own)

    def _know(self, row: int, draws: bool, drops: bool) -> None:
        self._draws[row] = draws
        self._truncates[row] = draws and drops
