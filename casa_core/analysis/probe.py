"""Replaces the fusion layers' attention by an analysis, one window at a time.

What an analysis needs (every weight, any mask) takes the dense matrix of a window's queries and keys. Windows
are taken one after the other, so memory is bounded by the largest of them, not by their sum.

Shape suffixes: T query (text) tokens, K keys, H/G query/key-value heads, D head size, P query heads of
a group, X any tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from casa_core.errors import ConfigError
from casa_core.fusion.attention import Segments, segment_attention, segment_attention_weights
from casa_core.fusion.layers import AttentionCall, AttentionProbe
from casa_core.fusion.windows import IntArray, Windows
from casa_core.model import CasaForConditionalGeneration


@dataclass(frozen=True, slots=True)
class WindowPart:
    """The part of a window in one forward.

    A window's tokens are its image tokens, then its text: *positions* 0, 1, … below.

    Attributes:
        text_T: The window's new text tokens, as indices into the forward's; they are the queries.
        key_K: The window's keys, as indices into the layer's: every image token, and where the layers attend
            to text (eq. 3) every text token up to the last new one.
        images: How many of the keys are image tokens: the place of the window's first text token.
        seen: Text tokens it held before this forward.
        segments: All of it as one attention segment.
    """

    text_T: torch.Tensor
    key_K: torch.Tensor
    images: int
    seen: int
    segments: Segments


def window_parts(windows: Windows, *, attends_text: bool, device: torch.device) -> list[WindowPart]:
    """The windows of a forward that have both a query and a key, in reading order."""
    keys = [windows.image_window_N]
    if attends_text:
        keys += [windows.carried_text_window_M, windows.text_window_T]
    window_K = np.concatenate(keys)
    parts = []
    for window in range(windows.count):
        text_T = np.flatnonzero(windows.text_window_T == window)
        key_K = np.flatnonzero(window_K == window)
        segments = Segments.build(_one(text_T), _one(key_K), 1, device)
        if segments is None:
            continue
        parts.append(
            WindowPart(
                text_T=torch.from_numpy(text_T).to(device),
                key_K=torch.from_numpy(key_K).to(device),
                images=int((windows.image_window_N == window).sum()),
                seen=int(windows.text_tokens_W[window]) - len(text_T),
                segments=segments,
            )
        )
    return parts


def _one(tokens_X: IntArray) -> IntArray:
    return np.zeros(len(tokens_X), dtype=np.int64)


def watching_refusal(model: CasaForConditionalGeneration) -> ConfigError | None:
    """Why a model has no fusion layers to look into, if so."""
    kind = model.config.fusion_settings.kind
    if not model.config.fusion_settings.inserts:
        return None
    return ConfigError(
        f"A model of fusion.kind = {kind!r} has no fusion layers to look into.",
        "Image tokens are part of its text and pass through self-attention.",
        "Analyse a model of kind 'casa' or 'cross_attention'.",
    )


@contextmanager
def probing(
    model: CasaForConditionalGeneration, probe: Callable[[Windows], AttentionProbe]
) -> Iterator[None]:
    """Let an analysis stand in for the attention of a model's fusion layers.

    Args:
        probe: Makes one for each forward, from its windows.

    Raises:
        ConfigError: If the model has no fusion layers, or another analysis is under way.
    """
    refusal = watching_refusal(model)
    if refusal is not None:
        raise refusal
    if model.attention_probe is not None:
        raise ConfigError(
            "The model is being analysed already.",
            "Only one analysis at a time can replace its attention.",
            "End the other one first.",
        )
    model.attention_probe = probe
    try:
        yield
    finally:
        model.attention_probe = None


# Called with the decoder layer, the window, and the weights (T, K) averaged over heads.
Look = Callable[[int, WindowPart, torch.Tensor], None]


@contextmanager
def watching(model: CasaForConditionalGeneration, look: Look) -> Iterator[None]:
    """Show every fusion layer's attention weights, window by window; the model computes what it always does.

    Args:
        look: Called for each fused layer of each forward, once a window. Rows of weights sum to 1.
    """
    attends_text = model.config.fusion_settings.attends_text

    def probe(windows: Windows) -> AttentionProbe:
        parts = window_parts(windows, attends_text=attends_text, device=model.device)

        def attend(call: AttentionCall) -> torch.Tensor:
            for part in parts:
                query, key = call.query_THD[part.text_T], call.key_KGD[part.key_K]
                look(call.layer, part, _mean_weights(query, key, part.segments, call.causal))
            tokens = call.query_THD, call.key_KGD, call.value_KGD
            return segment_attention(*tokens, call.segments, causal=call.causal, backend=call.backend)

        return attend

    with probing(model, probe):
        yield


def _mean_weights(
    query_THD: torch.Tensor, key_KGD: torch.Tensor, segments: Segments, causal: bool
) -> torch.Tensor:
    """(T, K) weights, averaged over heads; one group of heads at a time, for memory's sake."""
    heads, groups = query_THD.shape[1], key_KGD.shape[1]
    total_TK = sum(
        segment_attention_weights(query_TPD, key_KGD[:, group, None], segments, causal=causal).sum(dim=0)
        for group, query_TPD in enumerate(query_THD.split(heads // groups, dim=1))
    )
    assert isinstance(total_TK, torch.Tensor)
    return total_TK / heads
