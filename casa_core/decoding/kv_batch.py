"""A batch of growing sequences with their KV caches, and the forward that extends them together.

The text KV grows with text; the image KV of a sequence is that of its current window only.

Shape suffixes: B sequences, L new text tokens of a row (padded on the right), V vocabulary, X tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from casa_core.config import CasaConfig
from casa_core.decoding.kv_cache import TextBounds, TextCache, WindowCache, row_slices
from casa_core.decoding.plan import ForwardPlan, PlanSettings, SequenceState, TokenChunk, plan_forward
from casa_core.decoding.snapshot import SequenceSnapshot
from casa_core.errors import ConfigError, DataError
from casa_core.fusion.layout import LayoutRules
from casa_core.fusion.windows import Windows, WindowState
from casa_core.inputs import ImageInputs

if TYPE_CHECKING:
    from casa_core.model import CasaForConditionalGeneration

__all__ = ["KVBatch", "SequenceState", "TokenChunk"]

_IDLE = TokenChunk(())


@dataclass(slots=True)
class KVBatch:
    """B sequences (slots) that are extended in one forward; each may start over at any time.

    Attributes:
        bounds: Bounds of the text KV; ``None``: it grows with the text.
        text: Self-attention's keys and values; holds image tokens for insertion only.
        windows: Keys and values of each sequence's current window.
        states: Counts, positions and window of each sequence.
    """

    model: CasaForConditionalGeneration
    size: int
    bounds: TextBounds | None = None
    text: TextCache = field(init=False)
    windows: WindowCache = field(default_factory=WindowCache)
    states: list[SequenceState] = field(init=False)
    _setting: PlanSettings = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextCache(self.size, self.bounds and self.bounds.limit)
        self.states = [SequenceState() for _ in range(self.size)]
        config = cast(CasaConfig, self.model.config)
        rules = LayoutRules.of(config)
        self._setting = PlanSettings(rules, config.vision_config.spatial_merge_size, self.model.device)
        fusion = rules.fusion
        if self.bounds is not None and (fusion.inserts or fusion.positions == "global"):
            name, value = ("kind", fusion.kind) if fusion.inserts else ("positions", fusion.positions)
            raise ConfigError(
                f"The text KV of a model with fusion.{name} = {value!r} cannot be bounded.",
                "Dropping text moves positions, and cached image keys would no longer fit them.",
                "Open the stream without bounds.",
            )

    @property
    def lengths(self) -> list[int]:
        """Text tokens of each sequence so far."""
        return [state.text_tokens for state in self.states]

    @property
    def window_states(self) -> list[WindowState | None]:
        """The window each sequence is in."""
        return [state.window_state for state in self.states]

    @torch.inference_mode()
    def extend(self, rows: Sequence[TokenChunk | None]) -> torch.Tensor:
        """Append tokens (and images) to the sequences.

        Args:
            rows: One chunk per sequence, of any lengths; ``None`` leaves a sequence as it is.

        Returns:
            (B, V) logits after each sequence's last token; without meaning for a sequence left as it is.

        Raises:
            DataError: If no sequence has a new token, or the tokens do not fit the text KV's bounds.
        """
        full = [row or _IDLE for row in rows]
        longest = max(len(row.ids) for row in full)
        if longest == 0:
            raise DataError("No sequence has a new token.", "A forward needs at least one.", "Pass its ids.")
        device = self.model.device
        self._make_room(full)
        ids_BL = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in full], device=device)
        plan = plan_forward(full, self.states, self.text.lengths, self._setting)
        self.text.expect(plan.new_tokens, device)
        patches = [patches for row in full for patches in row.patches_PE]
        lasts = [max(len(row.ids), 1) - 1 for row in full]
        output = self.model(
            ids_BL,
            layout=plan.layout,
            images=ImageInputs(torch.cat(patches).to(device), [grid for row in full for grid in row.grids])
            if patches
            else None,
            text_cache=self.text,
            window_cache=self.windows,
            last_tokens=torch.tensor(lasts, device=device) if longest > 1 else None,
        )
        self._advance(full, plan)
        return output.logits[:, -1]

    @torch.inference_mode()
    def reset(self, row: int) -> None:
        """Start a sequence over, without text and window."""
        self._keep_windows([self._window_rows(n) for n in range(self.size) if n != row])
        self.states[row] = SequenceState()
        self.text.lengths[row] = 0

    def snapshot(self, row: int) -> SequenceSnapshot:
        """Copies of one sequence's caches and counts in main memory."""
        images, text = self._window_rows(row)
        copy = lambda pair: tuple(t.detach().to("cpu", copy=True).contiguous() for t in pair)  # noqa: E731
        return SequenceSnapshot(
            state=replace(self.states[row]),
            text={n: copy(pair) for n, pair in self.text.rows(row).items()},
            window_images={n: copy((k[images], v[images])) for n, (k, v) in self.windows.images.items()},
            window_text={n: copy((k[text], v[text])) for n, (k, v) in self.windows.text.items()},
        )

    @torch.inference_mode()
    def restore(self, row: int, snapshot: SequenceSnapshot) -> None:
        """Replace a sequence by a snapshot."""
        self.reset(row)
        moved = lambda pair: tuple(t.to(self.model.device) for t in pair)  # noqa: E731
        self.text.restore(row, {n: moved(pair) for n, pair in snapshot.text.items()})
        before = {n: self._window_rows(n) for n in range(self.size)}
        for store, held, part in (
            (self.windows.images, snapshot.window_images, 0),
            (self.windows.text, snapshot.window_text, 1),
        ):
            at = before[row][part].start
            for layer, pair in held.items():
                old = store.get(layer, (pair[0][:0], pair[1][:0]))
                key, value = (
                    torch.cat([o[:at].to(new), new, o[at:].to(new)])
                    for o, new in zip(old, moved(pair), strict=True)
                )
                store[layer] = key, value
        self.states[row] = replace(snapshot.state)

    def _make_room(self, rows: Sequence[TokenChunk]) -> None:
        """Drop the oldest text after the sinks where the new tokens would not fit."""
        if self.bounds is None:
            return
        for row, chunk in enumerate(rows):
            new, held = len(chunk.ids), self.text.lengths[row]
            if held + new <= self.bounds.limit:
                continue
            keep = self.bounds.sinks + self.bounds.recent
            count = max(held + new - keep, 0)
            if new > self.bounds.recent or held - count < self.bounds.sinks:
                raise DataError(
                    f"{new} tokens at once do not fit a text KV of {self.bounds.recent} recent tokens.",
                    "They would have to be dropped before they are read.",
                    "Raise the bounds' `recent`, or send less text at once.",
                )
            self.text.drop(row, self.bounds.sinks, count, self.model.shift_rope)
            self.states[row].position -= count
            self.states[row].dropped += count

    def _advance(self, rows: Sequence[TokenChunk], plan: ForwardPlan) -> None:
        """Advance lengths, positions and windows; drop the caches of windows that ended."""
        windows = plan.layout.windows
        window_states = windows.window_states() if windows is not None else []
        for row, chunk in enumerate(rows):
            state = self.states[row]
            state.text_tokens += len(chunk.ids)
            self.text.lengths[row] += plan.lengths[row]
            state.position = plan.positions[row] if plan.positions else state.position + len(chunk.ids)
            if window_states:
                state.window_state = window_states[plan.documents[row]]
        if windows is not None:
            self._drop_ended(windows, plan.documents)

    def _drop_ended(self, windows: Windows, documents: Sequence[int]) -> None:
        last = [windows.last_window_D[document] for document in documents]
        text_window = np.concatenate([windows.carried_text_window_M, windows.text_window_T])
        keep_text = _kept(text_window, last) if self._setting.rules.fusion.attends_text else None
        self.windows.keep(self._index(_kept(windows.image_window_N, last)), self._index(keep_text))

    def _index(self, index: np.ndarray | None) -> torch.Tensor | None:
        return None if index is None else torch.from_numpy(index).to(self.model.device)

    def _window_rows(self, row: int) -> tuple[slice, slice]:
        """A sequence's part of the flat window cache: its image tokens, its text tokens."""
        window_states = [state.window_state or WindowState(0, 0, 0) for state in self.states]
        return (
            row_slices([window_state.image_tokens for window_state in window_states])[row],
            row_slices([window_state.text_tokens for window_state in window_states])[row],
        )

    def _keep_windows(self, rows: Sequence[tuple[slice, slice]]) -> None:
        index = lambda part: torch.tensor(  # noqa: E731
            [n for slices in rows for n in range(slices[part].start, slices[part].stop)],
            dtype=torch.long,
            device=self.model.device,
        )
        self.windows.keep(index(0), index(1))


def _kept(window_X: np.ndarray, last: Sequence[int]) -> np.ndarray | None:
    """Indices of the tokens in the sequences' current windows, in order; ``None``: all, unchanged."""
    kept = [np.flatnonzero(window_X == window) for window in last if window >= 0]
    index = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    unchanged = len(index) == len(window_X) and (index == np.arange(len(index))).all()
    return None if unchanged else index
