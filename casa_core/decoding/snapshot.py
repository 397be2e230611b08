"""A snapshot of one sequence's KV caches and counts, as plain tensors and numbers.

Shape suffixes: none; shapes are given where they matter (G key/value heads, D head size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from casa_core.decoding.kv_cache import KeysValues
from casa_core.decoding.plan import SequenceState
from casa_core.fusion.windows import WindowState


@dataclass(frozen=True, slots=True)
class SequenceSnapshot:
    """An exact copy of one sequence: restored, it continues with the same tokens.

    Attributes:
        state: Counts and the window.
        text: Layer → self-attention's keys and values, (G, length, D).
        window_images, window_text: Layer → the current window's keys and values, (tokens, G, D).
    """

    state: SequenceState
    text: dict[int, KeysValues]
    window_images: dict[int, KeysValues]
    window_text: dict[int, KeysValues]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name → tensor, ready for a safetensors file."""
        named: dict[str, torch.Tensor] = {}
        for part in ("text", "window_images", "window_text"):
            for layer, (key, value) in getattr(self, part).items():
                named |= {f"{part}.{layer}.key": key, f"{part}.{layer}.value": value}
        return named

    def numbers(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON values."""
        window_state = self.state.window_state
        return {
            "text_tokens": self.state.text_tokens,
            "dropped": self.state.dropped,
            "position": self.state.position,
            "carry": None
            if window_state is None
            else [window_state.image_tokens, window_state.text_tokens, window_state.extent],
        }

    @classmethod
    def read(cls, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> SequenceSnapshot:
        """The inverse of :meth:`tensors` and :meth:`numbers`."""
        parts: dict[str, dict[int, KeysValues]] = {"text": {}, "window_images": {}, "window_text": {}}
        for name in tensors:
            part, layer, which = name.split(".")
            if which == "key":
                parts[part][int(layer)] = tensors[name], tensors[f"{part}.{layer}.value"]
        window_state = numbers["carry"]
        state = SequenceState(
            numbers["text_tokens"],
            numbers["dropped"],
            numbers["position"],
            None if window_state is None else WindowState(*window_state),
        )
        return cls(state, **parts)
