"""A batch of growing sequences with their KV caches, and the forward that extends them together.

The text KV grows with text; the image KV of a sequence is that of its current window only.

Shape suffixes: B sequences, A those that a forward extends, L new text tokens of a row (padded on the
right), V vocabulary, N numbers told of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from casa_core.config import CasaConfig
from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.graphed_step import GraphedStep
from casa_core.decoding.kv_cache import TextCache, WindowCache, WindowChange
from casa_core.decoding.plan import ForwardPlan, PlanSettings, SequenceState, TokenChunk, plan_forward
from casa_core.decoding.snapshot import SequenceSnapshot
from casa_core.errors import ConfigError, DataError
from casa_core.fusion.layout import LayoutRules
from casa_core.fusion.windows import Windows, WindowState
from casa_core.inputs import EmbeddedImages, ImageInputs

if TYPE_CHECKING:
    from casa_core.model import CasaForConditionalGeneration

__all__ = ["KVBatch", "SequenceState", "TokenChunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a batch allocates at its first forward, for each sequence; beyond it, memory grows as needed.

    The keys and values of a sequence take ``2 · G · D · (layers · text + fusion layers · (image_tokens +
    window_text))`` numbers, for G key/value heads of size D.

    Attributes:
        text: Tokens of text KV.
        image_tokens: Image tokens of a window.
        window_text: Text tokens of a window, where fusion layers attend to them (eq. 3).
    """

    text: int = 0
    image_tokens: int = 0
    window_text: int = 0


@dataclass(slots=True)
class KVBatch:
    """B sequences (slots) that are extended in one forward; each may start over at any time.

    Attributes:
        bounds: Bounds of the text KV; ``None``: it grows with the text.
        row_bounds: The same of each sequence, where they differ.
        room: What is allocated at once.
        decode: Runs the forwards in which each sequence has one new token and no image; by default the model
            runs them too.
        text: Self-attention's keys and values; holds image tokens for insertion only.
        windows: Keys and values of each sequence's current window.
        states: Counts, positions and window of each sequence.
    """

    model: CasaForConditionalGeneration
    size: int
    bounds: TextBounds | None = None
    room: Room = field(default_factory=Room)
    decode: DecodeStep | GraphedStep | None = None
    text: TextCache = field(init=False)
    windows: WindowCache = field(init=False)
    states: list[SequenceState] = field(init=False)
    row_bounds: list[TextBounds | None] = field(init=False)
    _setting: PlanSettings = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextCache(self.size, self.bounds and self.bounds.limit, reserve=self.room.text)
        self.states = [SequenceState() for _ in range(self.size)]
        config = cast(CasaConfig, self.model.config)
        rules = LayoutRules.of(config)
        self._setting = PlanSettings(rules, config.vision_config.spatial_merge_size, self.model.device)
        fusion = rules.fusion
        self.windows = WindowCache(
            self.size,
            attends_text=fusion.attends_text,
            reserve=(self.room.image_tokens, self.room.window_text),
        )
        self.check_bounds(self.bounds)
        self.row_bounds = [self.bounds] * self.size

    @property
    def boundable(self) -> bool:
        """Whether text can be dropped; not where cached image keys depend on its positions."""
        fusion = self._setting.rules.fusion
        return not (fusion.inserts or fusion.positions == "global")

    def check_bounds(self, bounds: TextBounds | None) -> None:
        """Refuse bounds that the model's text KV cannot have.

        Raises:
            ConfigError: See there.
        """
        if bounds is not None and not self.boundable:
            fusion = self._setting.rules.fusion
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
            rows: One chunk per sequence, of any lengths; ``None`` leaves a sequence as it is, at no cost.

        Returns:
            (A, V) logits after the last token of each of the A sequences that have a chunk, in order.

        Raises:
            DataError: If no sequence has a new token, or the tokens do not fit the text KV's bounds.
        """
        active = [row for row, chunk in enumerate(rows) if chunk is not None and chunk.ids]
        chunks = [chunk for chunk in rows if chunk is not None and chunk.ids]
        if not chunks:
            raise DataError("No sequence has a new token.", "A forward needs at least one.", "Pass its ids.")
        self._make_room(active, [len(chunk.ids) for chunk in chunks])
        longest = max(len(chunk.ids) for chunk in chunks)
        single = longest == 1 and not any(chunk.grids for chunk in chunks)
        # The first forward allocates the caches; what is probed runs through the model's own layers.
        allocated = bool(self.text.keys or self.windows.text)
        if self.decode is not None and single and allocated and self.model.attention_probe is None:
            return self._step(self.decode, active, [chunk.ids[0] for chunk in chunks])
        return self._forward(active, chunks, longest)

    def _forward(self, rows: list[int], chunks: list[TokenChunk], longest: int) -> torch.Tensor:
        device = self.model.device
        ids_AL = torch.tensor(
            [[*chunk.ids, *[0] * (longest - len(chunk.ids))] for chunk in chunks], device=device
        )
        states = [self.states[row] for row in rows]
        plan = plan_forward(chunks, states, [self.text.lengths[row] for row in rows], self._setting)
        self.text.expect(plan.new_tokens, device, rows)
        if plan.layout.windows is not None:
            self.windows.expect(_changes(rows, chunks, plan, plan.layout.windows))
        lasts = [len(chunk.ids) - 1 for chunk in chunks]
        # As ``__call__``, hooks and all, but after ``model.compile()`` that would compile every length anew.
        output: Any = self.model._call_impl(
            ids_AL,
            layout=plan.layout,
            images=_images(chunks, device),
            text_cache=self.text,
            window_cache=self.windows,
            last_tokens=torch.tensor(lasts, device=device) if longest > 1 else None,
        )
        self._advance(rows, chunks, plan)
        return output.logits[:, -1]

    def _step(self, decode: DecodeStep | GraphedStep, rows: list[int], tokens: list[int]) -> torch.Tensor:
        rules = self._setting.rules
        states = [self.states[row] for row in rows]
        if rules.fusion.replaces:
            for state in states:
                state.window_state = state.window_state or WindowState(0, 0, 0)
        entries = [self.text.lengths[row] for row in rows]
        windows = [state.window_state for state in states]
        held = [-1 if window is None else window.text_tokens for window in windows]
        positions = [state.position for state in states]
        numbers_NA = [
            tokens,
            rows,
            entries,
            positions,
            [0 if window is None else window.image_tokens for window in windows],
            held,
            positions
            if rules.fusion.positions == "global"
            else [0 if window is None else window.extent + window.text_tokens for window in windows],
        ]
        self.text.make_room(max(entries) + 1)
        self.windows.make_room(max(held) + 1)
        logits_AV = decode.run(numbers_NA, self.text, self.windows)
        for row, state in zip(rows, states, strict=True):
            state.text_tokens += 1
            state.position += 1
            self.text.lengths[row] += 1
            if (window := state.window_state) is not None:
                state.window_state = replace(window, text_tokens=window.text_tokens + 1)
                self.windows.text_lengths[row] += rules.fusion.attends_text
        return logits_AV

    @torch.inference_mode()
    def reset(self, row: int, *, erase: bool = False) -> None:
        """Start a sequence over, without text and window.

        Args:
            erase: Set its keys and values to zero. What a row does not hold is masked, by a weight of zero;
                but zero times what is not finite is not zero.
        """
        self.windows.reset(row)
        if erase:
            self.text.erase(row)
            self.windows.erase(row)
        self.states[row] = SequenceState()
        self.text.lengths[row] = 0

    def can_truncate(self, row: int, tokens: int, *, before_image: bool = False) -> bool:
        """Whether :meth:`truncate` can: not where an earlier window would come back, whose keys are gone, and
        not for insertion, whose images are tokens of the text."""
        state = self.states[row]
        excess = state.text_tokens - tokens
        if excess == 0:
            return True
        if state.dropped or self._setting.rules.fusion.inserts:
            return False
        window = state.window_state
        return before_image or window is None or excess < window.text_tokens + (window.image_tokens == 0)

    def truncate(self, row: int, tokens: int, *, before_image: bool = False) -> None:
        """Forget what follows a sequence's first ``tokens`` text tokens.

        Args:
            before_image: The next token to be read follows an image, which opens a window.
        """
        assert self.can_truncate(row, tokens, before_image=before_image)
        state = self.states[row]
        excess = state.text_tokens - tokens
        state.text_tokens -= excess
        state.position -= excess
        self.text.lengths[row] -= excess
        window = state.window_state
        if window is not None and excess < window.text_tokens + (window.image_tokens == 0):
            state.window_state = replace(window, text_tokens=window.text_tokens - excess)
            self.windows.text_lengths[row] -= excess * self._setting.rules.fusion.attends_text
        elif excess:
            state.window_state = None
            self.windows.reset(row)

    def snapshot(self, row: int) -> SequenceSnapshot:
        """Copies of one sequence's caches and counts in main memory."""
        copies = lambda held: {  # noqa: E731
            layer: tuple(t.detach().to("cpu", copy=True).contiguous() for t in pair)
            for layer, pair in held.items()
        }
        images, text = self.windows.rows(row)
        return SequenceSnapshot(
            state=replace(self.states[row]),
            text=copies(self.text.rows(row)),
            window_images=copies(images),
            window_text=copies(text),
        )

    @torch.inference_mode()
    def restore(self, row: int, snapshot: SequenceSnapshot) -> None:
        """Replace a sequence by a snapshot."""
        moved = lambda held: {  # noqa: E731
            layer: (key.to(self.model.device), value.to(self.model.device))
            for layer, (key, value) in held.items()
        }
        self.reset(row)
        self.text.restore(row, moved(snapshot.text))
        self.windows.restore(row, moved(snapshot.window_images), moved(snapshot.window_text))
        self.states[row] = replace(snapshot.state)

    @torch.inference_mode()
    def reorder(self, order: Sequence[int]) -> None:
        """Row n becomes what row ``order[n]`` was: beam search keeps some beams and drops others."""
        order_B = torch.tensor(order, dtype=torch.long, device=self.model.device)
        self.text.reorder(order, order_B)
        self.windows.reorder(order, order_B)
        self.states = [replace(self.states[row]) for row in order]

    def _make_room(self, rows: Sequence[int], news: Sequence[int]) -> None:
        """Drop the oldest text after the sinks where the new tokens would not fit."""
        for row, new in zip(rows, news, strict=True):
            bounds, held = self.row_bounds[row], self.text.lengths[row]
            if bounds is None or held + new <= bounds.limit:
                continue
            keep = bounds.sinks + bounds.recent
            count = max(held + new - keep, 0)
            if new > bounds.recent or held - count < bounds.sinks:
                raise DataError(
                    f"{new} tokens at once do not fit a text KV of {bounds.recent} recent tokens.",
                    "They would have to be dropped before they are read.",
                    "Raise the bounds' `recent`, or send less text at once.",
                )
            self.text.drop(row, bounds.sinks, count, self.model.shift_rope)
            self.states[row].position -= count
            self.states[row].dropped += count

    def _advance(self, rows: Sequence[int], chunks: Sequence[TokenChunk], plan: ForwardPlan) -> None:
        """Advance lengths, positions and windows."""
        windows = plan.layout.windows
        window_states = windows.window_states() if windows is not None else []
        for number, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
            state = self.states[row]
            state.text_tokens += len(chunk.ids)
            self.text.lengths[row] += plan.lengths[number]
            state.position = plan.positions[number] if plan.positions else state.position + len(chunk.ids)
            if window_states:
                state.window_state = window_states[plan.documents[number]]
        self.windows.commit()


def _images(chunks: Sequence[TokenChunk], device: torch.device) -> ImageInputs | EmbeddedImages | None:
    grids = [grid for chunk in chunks for grid in chunk.grids]
    if not grids:
        return None
    features = [one for chunk in chunks for one in chunk.features_NC]
    patches = [one for chunk in chunks for one in chunk.patches_PE]
    assert not (features and patches), "a forward's images are all embedded, or none is"
    if features:
        return EmbeddedImages(torch.cat(features).to(device), grids)
    return ImageInputs(torch.cat(patches).to(device), grids)


def _changes(
    rows: Sequence[int], chunks: Sequence[TokenChunk], plan: ForwardPlan, windows: Windows
) -> list[WindowChange]:
    """What remains of each row's new tokens: those of the window that it is in afterwards."""
    changes: list[WindowChange] = []
    images = 0
    for number, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
        images += sum(chunk.image_tokens)
        window = int(windows.last_window_D[plan.documents[number]])
        end = number * plan.new_tokens + len(chunk.ids)
        kept = 0 if window < 0 else len(chunk.ids)
        shown = None
        if chunk.grids:  # its last images opened the window
            kept = int(windows.text_tokens_W[window])
            shown = slice(images - int(windows.image_tokens_W[window]), images)
        changes.append(WindowChange(row, shown, slice(end - kept, end)))
    return changes
