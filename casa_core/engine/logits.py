"""What may be said again, and how soon a row falls silent: processors that change logits before the choice.

The official live captioner runs an exponential-moving-average repetition penalty, a windowed no-repeat n-gram
rule and a stop-token bias, but publishes none of their formulas; those below are ours. Each row has its own
settings. In this order, for token v of a row:

- **Repetition penalty**: ``logit_v ← logit_v − repetition_penalty · e_v``. After each token w the row says,
  ``e ← repetition_decay · e + onehot(w)``: the moving average without its factor (1 − decay), so that saying
  a token costs it ``repetition_penalty`` nats at once, whatever the decay, and a decay of 1 counts
  occurrences. Subtracting, unlike dividing, does not depend on where the logits' zero lies.
- **Stop bias**: ``logit_v ← logit_v + stop_bias`` for each of the row's stop tokens.
- **No-repeat n-gram**: ``logit_v ← −inf`` where the row's last n − 1 tokens and v make an n-gram that already
  lies wholly within its last ``no_repeat_window`` tokens.

A row's *said* tokens are those chosen for it, without its stop tokens: silence is no repetition, so the stop
token is neither penalised nor forbidden, takes no room in the window and ages nothing, and an n-gram may run
across the frames of a stream. The prompt is not said; who wants it counted gives it as ``history``.

Everything a step does is a tensor operation of a shape known beforehand: nothing is read back to the host.

Shape suffixes: B rows, V vocabulary, W tokens remembered, S stop tokens, K tokens of the longest n-gram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_tensors import Column, SlotTensors
from casa_core.errors import DataError

NO_TOKEN = -1  # fills rings and lists of stop tokens; no token has this id


def penalise_repeats(
    logits_BV: torch.Tensor, said_BV: torch.Tensor, strength_B: torch.Tensor
) -> torch.Tensor:
    """Logits without the row's strength times how lately and often each token was said."""
    return logits_BV - said_BV * strength_B[:, None]


def bias_stops(logits_BV: torch.Tensor, stops_BS: torch.Tensor, bias_B: torch.Tensor) -> torch.Tensor:
    """Logits with the row's bias on its stop tokens; ``stops_BS`` is filled up with ``NO_TOKEN``."""
    # The filling adds nothing to token 0.
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
        recent_BW: Said tokens, the newest last, filled up in front with ``NO_TOKEN``; W ≥ ``longest``.
        size_B: Length of the row's n-grams; 0 forbids nothing.
        window_B: How many of the last tokens count, at most W.
        longest: K, the largest of ``size_B``.
    """
    width = recent_BW.shape[1]
    device = recent_BW.device
    # grams_BWK[:, w] are the K tokens up to and including token w, oldest first. A start with filling in it
    # equals the tail only at the tail's own place, which no token follows.
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
    """What the rows ask for, known to the host, so that what nobody asked for costs nothing."""

    penalty: bool = False
    bias: bool = False
    longest: int = 0


class LogitsProcessors:
    """The processors of B rows: their settings, and what each row said.

    A row's outcome depends on that row alone: who sits beside it changes only which operations run.

    Args:
        rows: B.
        vocabulary: V.
        device: Of the logits.
    """

    def __init__(self, rows: int, vocabulary: int, *, device: str | torch.device = "cpu") -> None:
        self.vocabulary = vocabulary
        self._rows = SlotTensors(rows, {**_SETTINGS, **_MEMORY}, device)
        # (B, V), made once a row asks for the penalty.
        self._average = SlotTensors(rows, {"said_average": Column(torch.float32, 0.0, width=0)}, device)
        self._uses = [_Uses()] * rows

    @property
    def layout(self) -> tuple[object, ...]:
        """What a step's operations and tensors are; a recorded step is valid while this stays the same."""
        whole = self._joint()
        return whole, len(self._uses), self._rows["recent"].shape[1], self._rows["stop_ids"].shape[1]

    def set_row(
        self, row: int, params: SamplingParams, *, stop_ids: Sequence[int] = (), history: Sequence[int] = ()
    ) -> None:
        """Give a row new settings and an empty memory.

        Args:
            row: Which.
            params: Its settings.
            stop_ids: Tokens that end its answer or caption.
            history: Tokens that count as said, oldest first: a prompt's, or those of an earlier run. (The
                average of replayed tokens equals that of chosen ones up to rounding.)

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        for token in (*stop_ids, *history):
            if not 0 <= token < self.vocabulary:
                raise DataError(
                    f"token {token} is outside the vocabulary of {self.vocabulary}",
                    "stop tokens and history are ids of the model's own tokenizer",
                    "encode them with the checkpoint's tokenizer",
                )
        own, rows = tuple(dict.fromkeys(stop_ids)), self._rows
        rows.widen("stop_ids", len(own))
        rows.reset(row)
        for name in _SETTINGS:
            if name != "stop_ids":
                rows[name][row] = getattr(params, name)
        for place, token in enumerate(own):
            rows["stop_ids"][row, place] = token
        self._uses[row] = _Uses(
            params.repetition_penalty > 0, params.stop_bias != 0 and bool(own), params.no_repeat_ngram_size
        )
        self._make_room(row, params.no_repeat_window)
        self.reset(row)
        self._replay(row, params, [token for token in history if token not in own])

    def reset(self, row: int) -> None:
        """Forget what a row said; its settings stay."""
        self._rows.reset(row, list(_MEMORY))
        self._average.reset(row)

    def add_rows(self, count: int) -> None:
        """Append rows without any processing."""
        self._rows.add_rows(count)
        self._average.add_rows(count)
        self._uses += [_Uses()] * count

    @torch.no_grad()
    def apply(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Process logits; the given ones stay as they are, and come back themselves where no row asks."""
        uses, rows = self._joint(), self._rows
        if uses == _Uses():
            return logits_BV
        logits_BV = logits_BV.float()
        if uses.penalty:
            average_BV = self._average["said_average"]
            logits_BV = penalise_repeats(logits_BV, average_BV, rows["repetition_penalty"])
        if uses.bias:
            logits_BV = bias_stops(logits_BV, rows["stop_ids"], rows["stop_bias"])
        if uses.longest:
            logits_BV = forbid_repeats(
                logits_BV,
                rows["recent"],
                rows["no_repeat_ngram_size"],
                rows["no_repeat_window"],
                uses.longest,
            )
        return logits_BV

    @torch.no_grad()
    def observe(self, tokens_B: torch.Tensor, active_B: torch.Tensor | None = None) -> None:
        """Remember the token each row said, unless it is a stop token.

        Args:
            tokens_B: int64, ids of the vocabulary.
            active_B: bool; other rows stay as they are. All rows by default.
        """
        uses, rows = self._joint(), self._rows
        if not (uses.penalty or uses.longest):
            return
        said_B = ~(tokens_B[:, None] == rows["stop_ids"]).any(1)
        if active_B is not None:
            said_B = said_B & active_B
        if uses.penalty:
            average_BV = self._average["said_average"]
            average_BV.mul_(torch.where(said_B, rows["repetition_decay"], 1.0)[:, None])
            average_BV.scatter_add_(1, tokens_B[:, None], said_B.float()[:, None])
        if uses.longest:
            recent_BW = rows["recent"]
            shifted_BW = torch.cat([recent_BW[:, 1:], tokens_B[:, None]], dim=1)
            recent_BW.copy_(torch.where(said_B[:, None], shifted_BW, recent_BW))

    def row_state(self, row: int) -> dict[str, torch.Tensor]:
        """Copies of a row's settings and memory, on the device; the average only where it is in use."""
        average = self._average.row_state(row) if self._uses[row].penalty else {}
        return self._rows.row_state(row) | average

    def load_row(self, row: int, state: Mapping[str, torch.Tensor]) -> None:
        """Continue a row exactly where :meth:`row_state` was taken, of any row here or elsewhere.

        Raises:
            DataError: If the state is not such a one, or of another vocabulary.
        """
        average = state.get("said_average")
        if average is not None and average.shape != (self.vocabulary,):
            raise DataError(
                f"the row's state is of a vocabulary of {average.numel()} tokens, not of {self.vocabulary}",
                "what was said is remembered by token",
                "load it where the same model runs",
            )
        self._rows.load_row(row, state)
        rows = self._rows
        self._uses[row] = _Uses(
            bool(rows["repetition_penalty"][row] > 0),
            bool((rows["stop_bias"][row] != 0) & (rows["stop_ids"][row] >= 0).any()),
            int(rows["no_repeat_ngram_size"][row]),
        )
        self._make_room(row, rows["recent"].shape[1])
        if self._uses[row].penalty:
            self._average.load_row(row, state)

    def _joint(self) -> _Uses:
        return _Uses(
            any(uses.penalty for uses in self._uses),
            any(uses.bias for uses in self._uses),
            max((uses.longest for uses in self._uses), default=0),
        )

    def _make_room(self, row: int, window: int) -> None:
        if self._uses[row].penalty:
            self._average.widen("said_average", self.vocabulary)
        if self._uses[row].longest:
            self._rows.widen("recent", window)

    def _replay(self, row: int, params: SamplingParams, said: Sequence[int]) -> None:
        if not said:
            return
        device = self._rows.device
        tokens_L = torch.tensor(said, dtype=torch.int64, device=device)
        if self._uses[row].penalty:
            age_L = torch.arange(len(said) - 1, -1, -1, dtype=torch.float32, device=device)
            self._average["said_average"][row].index_add_(0, tokens_L, params.repetition_decay**age_L)
        if self._uses[row].longest:
            newest = tokens_L[-self._rows["recent"].shape[1] :]
            self._rows["recent"][row, -len(newest) :] = newest
