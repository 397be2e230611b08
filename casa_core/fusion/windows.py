"""Image positions and document starts → attention windows. The only module that decides windows.

A *window* is one image, or several consecutive images (no text between them), plus the text from there to the
document's next image (paper, B.2). Text before a document's first image, and text of a document without
images, lies in no window: its fusion update is zero. Where fusion layers replace self-attention (∨) it has an
image-less window instead, so that its causal self-attention is kept.

An image's position is the index of the text token that follows it, and the image belongs to that token's
document.

A forward may continue documents that began earlier (cached decoding, live streams). What is left of the
old window then comes in as a :class:`WindowState`, so that a frame's stop token that is folded into the next
frame's prefill still belongs to the *old* window.

Shape suffixes: T text tokens, N image tokens, M carried text tokens, W windows, D documents, I images, R runs
(windows before they are sorted), A position axes (1, or 3 for multimodal RoPE: time, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import DataError
from casa_core.fusion.config import Positions

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRules:
    """A model's rules for windows and positions.

    Attributes:
        axes: Position axes of the backbone's RoPE: 1, or 3 for multimodal RoPE.
        positions: Where positions inside a fusion layer start; see
            :class:`casa_core.fusion.config.FusionConfig`.
        imageless: Text without an image has a window of its own (∨).
    """

    axes: Literal[1, 3] = 1
    positions: Positions = "window"
    imageless: bool = False


@dataclass(frozen=True, slots=True)
class WindowState:
    """The window a document is in when a forward starts.

    Attributes:
        image_tokens: Image tokens of that window, whose keys and values are cached.
        text_tokens: Text tokens the window already holds.
        extent: RoPE positions its images take: the window's first text token stands there.
    """

    image_tokens: int
    text_tokens: int
    extent: int


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of one forward.

    Image tokens are ordered: first those of carried windows, document by document, then this forward's own in
    reading order. Carried text tokens are ordered document by document.

    Attributes:
        text_window_T: Window of each text token, −1 for none.
        text_position_T: RoPE position of each text token inside the fusion layers, on every axis.
        image_window_N: Window of each image token.
        image_position_AN: RoPE position of each *new* image token inside the fusion layers.
        carried_text_window_M: Window of each text token that a carried window already holds.
        carried_tokens: How many of the N image tokens come from the cache.
        count: Number of windows W.
        image_tokens_W, text_tokens_W, extent_W: What each window holds after this forward, as in
            :class:`WindowState`.
        last_window_D: The window each document is in after this forward, −1 for none.
    """

    text_window_T: IntArray
    text_position_T: IntArray
    image_window_N: IntArray
    image_position_AN: IntArray
    carried_text_window_M: IntArray
    carried_tokens: int
    count: int
    image_tokens_W: IntArray
    text_tokens_W: IntArray
    extent_W: IntArray
    last_window_D: IntArray

    def window_states(self) -> list[WindowState | None]:
        """The window state that each document carries into its next forward."""
        return [
            None
            if window < 0
            else WindowState(
                int(self.image_tokens_W[window]),
                int(self.text_tokens_W[window]),
                int(self.extent_W[window]),
            )
            for window in self.last_window_D
        ]


def window_layout(
    *,
    text_length: int,
    document_starts: Sequence[int],
    image_positions: Sequence[int] = (),
    image_tokens: Sequence[int] = (),
    image_grids: Sequence[tuple[int, int]] | None = None,
    window_states: Sequence[WindowState | None] | None = None,
    text_positions: Sequence[int] | IntArray | None = None,
    rules: WindowRules | None = None,
) -> Windows:
    """Lay out the windows of a forward over T text tokens.

    Args:
        text_length: T, all documents one after the other.
        document_starts: Start of each document, ascending, the first at 0.
        image_positions: For each image, the index of the text token that follows it; ascending.
        image_tokens: Tokens of each image after the patch merge.
        image_grids: (rows, columns) of each image's tokens; needed where ``rules.axes`` is 3.
        window_states: Per document, the window it is already in, or ``None``.
        text_positions: Position of each text token in self-attention; needed where ``rules.positions`` is
            ``global``.
        rules: The model's rules.

    Raises:
        DataError: If positions are unsorted, out of range, or documents do not start at 0.
    """
    rules = rules or WindowRules()
    starts_D = np.asarray(document_starts, dtype=np.int64)
    positions_I = np.asarray(image_positions, dtype=np.int64)
    tokens_I = np.asarray(image_tokens, dtype=np.int64)
    _check(text_length, starts_D, positions_I, tokens_I)
    grids_I2 = _token_grids(tokens_I, image_grids, rules)

    runs = _find_runs(starts_D, positions_I, tokens_I, grids_I2, window_states or (), rules)
    document_T = np.searchsorted(starts_D, np.arange(text_length), side="right") - 1
    text_window_T, text_position_T = _text_windows(document_T, runs)
    image_position_AN = _image_positions(tokens_I, grids_I2, runs.offset_I, rules)
    if rules.positions == "global":
        assert text_positions is not None, "global positions need the text's own"
        own_T = np.asarray(text_positions, dtype=np.int64)
        text_position_T = np.where(text_window_T >= 0, own_T, 0)
        # A run of images starts where its first text token stands.
        image_position_AN = image_position_AN + np.repeat(own_T[positions_I], tokens_I)
    last_window_D = np.full(len(starts_D), -1, dtype=np.int64)
    last_window_D[runs.document_W] = np.arange(len(runs.start_W))  # later windows overwrite earlier ones
    new_text_W = np.bincount(text_window_T[text_window_T >= 0], minlength=len(runs.start_W))
    return Windows(
        text_window_T=text_window_T,
        text_position_T=text_position_T,
        image_window_N=runs.window_N,
        image_position_AN=image_position_AN,
        carried_text_window_M=runs.carried_text_window_M,
        carried_tokens=runs.carried_tokens,
        count=len(runs.start_W),
        image_tokens_W=runs.tokens_W,
        text_tokens_W=runs.seen_W + new_text_W,
        extent_W=runs.extent_W,
        last_window_D=last_window_D,
    )


@dataclass(frozen=True, slots=True)
class _Runs:
    """What opens each window: its document's start (carried and image-less ones) or its first image.

    Attributes:
        start_W: Text token at which the window's text goes on or begins.
        document_W: Its document.
        tokens_W, extent_W: Its image tokens, and the positions they take.
        seen_W: Text tokens it held before this forward.
        window_N: Window of each image token.
        offset_I: Position at which each new image starts in its window.
        carried_tokens: How many image tokens are carried.
        carried_text_window_M: Window of each carried text token.
    """

    start_W: IntArray
    document_W: IntArray
    tokens_W: IntArray
    extent_W: IntArray
    seen_W: IntArray
    window_N: IntArray
    offset_I: IntArray
    carried_tokens: int
    carried_text_window_M: IntArray


def _find_runs(
    starts_D: IntArray,
    positions_I: IntArray,
    tokens_I: IntArray,
    grids_I2: IntArray,
    window_states: Sequence[WindowState | None],
    rules: WindowRules,
) -> _Runs:
    """Windows in reading order. R numbers runs as found: those at document starts first, then new images."""
    opened = [
        (document, window_state or WindowState(0, 0, 0))
        for document, window_state in enumerate(window_states or [None] * len(starts_D))
        if window_state is not None or rules.imageless
    ]
    opened_D = np.array([document for document, _ in opened], dtype=np.int64)
    opened_tokens = np.array([window_state.image_tokens for _, window_state in opened], dtype=np.int64)
    seen = np.array([window_state.text_tokens for _, window_state in opened], dtype=np.int64)
    new_I = np.ones(len(positions_I), dtype=bool)
    new_I[1:] = positions_I[1:] != positions_I[:-1]
    run_I = np.cumsum(new_I) - 1 + len(opened)
    document_I = np.searchsorted(starts_D, positions_I, side="right") - 1
    start_R = np.concatenate([starts_D[opened_D], positions_I[new_I]])
    document_R = np.concatenate([opened_D, document_I[new_I]])
    count = len(start_R)

    step_I = tokens_I if rules.axes == 1 else grids_I2.max(axis=1, initial=0)
    tokens_R = np.bincount(run_I, weights=tokens_I, minlength=count).astype(np.int64)
    extent_R = np.bincount(run_I, weights=step_I, minlength=count).astype(np.int64)
    tokens_R[: len(opened)] = opened_tokens
    extent_R[: len(opened)] = [window_state.extent for _, window_state in opened]
    seen_R = np.concatenate([seen, np.zeros(count - len(opened), dtype=np.int64)])
    before_I = np.cumsum(step_I) - step_I
    offset_I = before_I - before_I[new_I][run_I - len(opened)] if len(run_I) else before_I

    # A window that a document starts in precedes one that an image opens at the same token.
    order_W = np.lexsort((np.arange(count) >= len(opened), document_R, start_R))
    window_R = np.empty(count, dtype=np.int64)
    window_R[order_W] = np.arange(count)
    carried_R = np.arange(len(opened))
    run_N = np.concatenate([np.repeat(carried_R, opened_tokens), np.repeat(run_I, tokens_I)])
    return _Runs(
        start_W=start_R[order_W],
        document_W=document_R[order_W],
        tokens_W=tokens_R[order_W],
        extent_W=extent_R[order_W],
        seen_W=seen_R[order_W],
        window_N=window_R[run_N],
        offset_I=offset_I,
        carried_tokens=int(opened_tokens.sum()),
        carried_text_window_M=window_R[np.repeat(carried_R, seen)],
    )


def _text_windows(document_T: IntArray, runs: _Runs) -> tuple[IntArray, IntArray]:
    """Window and position of each text token: the last run at or before it, if it is its document's own."""
    index_T = np.arange(len(document_T))
    if len(runs.start_W) == 0:
        return np.full(len(document_T), -1, dtype=np.int64), np.zeros(len(document_T), dtype=np.int64)
    window_T = np.searchsorted(runs.start_W, index_T, side="right") - 1
    own_T = (window_T >= 0) & (runs.document_W[np.maximum(window_T, 0)] == document_T)
    window_T = np.where(own_T, window_T, -1)
    position_T = runs.extent_W[window_T] + runs.seen_W[window_T] + index_T - runs.start_W[window_T]
    return window_T, np.where(own_T, position_T, 0)


def _image_positions(
    tokens_I: IntArray, grids_I2: IntArray, offset_I: IntArray, rules: WindowRules
) -> IntArray:
    """(A, N) positions of the new image tokens, each window's first image at 0."""
    offset_N = np.repeat(offset_I, tokens_I)
    index_N = np.arange(len(offset_N)) - np.repeat(np.cumsum(tokens_I) - tokens_I, tokens_I)
    if rules.axes == 1:
        return (offset_N + index_N)[None]
    return offset_N + grid_positions(index_N, np.repeat(grids_I2[:, 1], tokens_I))


def grid_positions(index_N: IntArray, columns_N: IntArray) -> IntArray:
    """(3, N) time, row and column of image tokens in raster order; an image has one time."""
    columns_N = np.maximum(columns_N, 1)
    return np.stack([np.zeros_like(index_N), index_N // columns_N, index_N % columns_N])


def _token_grids(
    tokens_I: IntArray, image_grids: Sequence[tuple[int, int]] | None, rules: WindowRules
) -> IntArray:
    if rules.axes == 1:
        return np.zeros((len(tokens_I), 2), dtype=np.int64)
    grids_I2 = np.asarray(image_grids if image_grids is not None else [], dtype=np.int64).reshape(-1, 2)
    if len(grids_I2) != len(tokens_I) or (grids_I2.prod(axis=1) != tokens_I).any():
        raise DataError(
            f"Image grids {grids_I2[:5].tolist()} do not hold the images' {tokens_I[:5].tolist()} tokens.",
            "Multimodal RoPE rotates each image token by its row and column.",
            "Give each image the (rows, columns) of its tokens.",
        )
    return grids_I2


def _check(text_length: int, starts_D: IntArray, positions_I: IntArray, tokens_I: IntArray) -> None:
    if text_length and (len(starts_D) == 0 or starts_D[0] != 0 or (np.diff(starts_D) < 0).any()):
        raise DataError(
            f"Document starts {starts_D[:5].tolist()}… are not ascending from 0.",
            "Every text token must belong to a document.",
            "Rebuild the packed data with `casa run`.",
        )
    if len(positions_I) != len(tokens_I):
        raise DataError(
            f"{len(positions_I)} image positions but {len(tokens_I)} image sizes.",
            "Each image needs both.",
            "Pass one position and one size for each image.",
        )
    if len(positions_I) and (
        (np.diff(positions_I) < 0).any() or positions_I[0] < 0 or positions_I[-1] >= text_length
    ):
        raise DataError(
            f"Image positions {positions_I[:5].tolist()}… are unsorted or outside the {text_length} text "
            "tokens.",
            "An image stands before the text token that follows it, so one must follow.",
            "Keep the template's post-image token after the last image.",
        )
