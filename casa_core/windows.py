"""Image positions and document starts → attention windows. The only place where windows are decided.

A *window* is one image, or several consecutive images (no text between them), plus the text from there to the
document's next image (paper, B.2). Text before a document's first image, and text of a document without
images, lies in no window: its fusion update is zero.

An image's position is the index of the text token that follows it, and the image belongs to that token's
document.

A forward may continue documents that began earlier (cached decoding, live streams). What is left of the old
window then comes in as a :class:`Carry`, so that a frame's stop token that is folded into the next frame's
prefill still belongs to the *old* window.

Shape suffixes: T text tokens, N image tokens, W windows, D documents, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import DataError

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Carry:
    """The window a document is in when a forward starts.

    Attributes:
        image_tokens: Image tokens of that window, whose keys and values are cached.
        text_tokens: Text tokens the window already holds.
    """

    image_tokens: int
    text_tokens: int


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of one forward.

    Image tokens are ordered: first those of carried windows, document by document, then this forward's own in
    reading order.

    Attributes:
        text_window_T: Window of each text token, −1 for none.
        text_position_T: RoPE position of each text token inside the fusion layers.
        image_window_N: Window of each image token.
        image_position_N: RoPE position of each image token inside the fusion layers.
        carried_tokens: How many of the N image tokens come from the cache.
        count: Number of windows W.
        last_window_D: The window each document is in after this forward, −1 for none.
    """

    text_window_T: IntArray
    text_position_T: IntArray
    image_window_N: IntArray
    image_position_N: IntArray
    carried_tokens: int
    count: int
    last_window_D: IntArray

    def carries(self, document_ends: Sequence[int], document_starts: Sequence[int]) -> list[Carry | None]:
        """What each document must carry into its next forward.

        Args:
            document_ends: Exclusive end of each document in this forward's text.
            document_starts: Start of each document in this forward's text.
        """
        counts_W = np.bincount(self.image_window_N, minlength=max(self.count, 1))
        carries: list[Carry | None] = []
        for start, end, window in zip(document_starts, document_ends, self.last_window_D, strict=True):
            if window < 0:
                carries.append(None)
                continue
            tokens = int(counts_W[window])
            # A window whose image is followed by no text yet has seen none; otherwise the last token's place
            # tells.
            inside = end > start and self.text_window_T[end - 1] == window
            seen = int(self.text_position_T[end - 1]) + 1 - tokens if inside else 0
            carries.append(Carry(tokens, seen))
        return carries


def window_layout(
    *,
    text_length: int,
    document_starts: Sequence[int],
    image_positions: Sequence[int] = (),
    image_tokens: Sequence[int] = (),
    carries: Sequence[Carry | None] | None = None,
) -> Windows:
    """Lay out the windows of a forward over T text tokens.

    Args:
        text_length: T, all documents one after the other.
        document_starts: Start of each document, ascending, the first at 0.
        image_positions: For each image, the index of the text token that follows it; ascending.
        image_tokens: Tokens of each image after the patch merge.
        carries: Per document, the window it is already in, or ``None``.

    Raises:
        DataError: If positions are unsorted, out of range, or documents do not start at 0.
    """
    starts_D = np.asarray(document_starts, dtype=np.int64)
    positions_I = np.asarray(image_positions, dtype=np.int64)
    tokens_I = np.asarray(image_tokens, dtype=np.int64)
    _check(text_length, starts_D, positions_I, tokens_I)

    runs = _find_runs(starts_D, positions_I, tokens_I, carries or ())
    document_T = np.searchsorted(starts_D, np.arange(text_length), side="right") - 1
    text_window_T, text_position_T = _place_text(document_T, runs)
    last_window_D = np.full(len(starts_D), -1, dtype=np.int64)
    last_window_D[runs.document_W] = np.arange(len(runs.start_W))  # later windows overwrite earlier ones
    return Windows(
        text_window_T=text_window_T,
        text_position_T=text_position_T,
        image_window_N=runs.window_N,
        image_position_N=runs.position_N,
        carried_tokens=runs.carried_tokens,
        count=len(runs.start_W),
        last_window_D=last_window_D,
    )


@dataclass(frozen=True, slots=True)
class _Runs:
    """What opens each window: a carried one at its document's start, or the first of consecutive images.

    Attributes:
        start_W: Text token at which the window's text goes on or begins.
        document_W: Its document.
        tokens_W: Its image tokens.
        offset_W: Text tokens it held before this forward.
        window_N, position_N: Window of each image token, and its place in it.
        carried_tokens: How many image tokens are carried.
    """

    start_W: IntArray
    document_W: IntArray
    tokens_W: IntArray
    offset_W: IntArray
    window_N: IntArray
    position_N: IntArray
    carried_tokens: int


def _find_runs(
    starts_D: IntArray, positions_I: IntArray, tokens_I: IntArray, carries: Sequence[Carry | None]
) -> _Runs:
    """Windows in reading order. R numbers runs as found: carried ones first, then new ones."""
    carried = [(document, carry) for document, carry in enumerate(carries) if carry is not None]
    carried_D = np.array([document for document, _ in carried], dtype=np.int64)
    new_I = np.ones(len(positions_I), dtype=bool)
    new_I[1:] = positions_I[1:] != positions_I[:-1]
    run_I = np.cumsum(new_I) - 1 + len(carried)
    start_R = np.concatenate([starts_D[carried_D], positions_I[new_I]])
    document_I = np.searchsorted(starts_D, positions_I, side="right") - 1
    document_R = np.concatenate([carried_D, document_I[new_I]])
    tokens_R = np.bincount(run_I, weights=tokens_I, minlength=len(start_R)).astype(np.int64)
    tokens_R[: len(carried)] = [carry.image_tokens for _, carry in carried]
    offset_R = np.zeros(len(start_R), dtype=np.int64)
    offset_R[: len(carried)] = [carry.text_tokens for _, carry in carried]
    # A stable order by start puts a carried window before a new image at the same place.
    order_W = np.argsort(start_R, kind="stable")
    window_R = np.empty_like(order_W)
    window_R[order_W] = np.arange(len(order_W))
    carried_N = np.repeat(np.arange(len(carried)), tokens_R[: len(carried)])
    run_N = np.concatenate([carried_N, np.repeat(run_I, tokens_I)])
    return _Runs(
        start_W=start_R[order_W],
        document_W=document_R[order_W],
        tokens_W=tokens_R[order_W],
        offset_W=offset_R[order_W],
        window_N=window_R[run_N],
        position_N=_index_in_run(run_N),
        carried_tokens=len(carried_N),
    )


def _place_text(document_T: IntArray, runs: _Runs) -> tuple[IntArray, IntArray]:
    """Window and position of each text token: the last run at or before it, if it is its document's own."""
    index_T = np.arange(len(document_T))
    if len(runs.start_W) == 0:
        return np.full(len(document_T), -1, dtype=np.int64), np.zeros(len(document_T), dtype=np.int64)
    window_T = np.searchsorted(runs.start_W, index_T, side="right") - 1
    own_T = (window_T >= 0) & (runs.document_W[np.maximum(window_T, 0)] == document_T)
    window_T = np.where(own_T, window_T, -1)
    place_T = index_T - runs.start_W[window_T]
    position_T = runs.tokens_W[window_T] + runs.offset_W[window_T] + place_T
    return window_T, np.where(own_T, position_T, 0)


def _index_in_run(runs_N: IntArray) -> IntArray:
    """0, 1, 2 … inside each stretch of equal values."""
    if len(runs_N) == 0:
        return runs_N
    change_N = np.concatenate([[True], runs_N[1:] != runs_N[:-1]])
    first_N = np.maximum.accumulate(np.where(change_N, np.arange(len(runs_N)), 0))
    return np.arange(len(runs_N)) - first_N


def _check(text_length: int, starts_D: IntArray, positions_I: IntArray, tokens_I: IntArray) -> None:
    if text_length and (len(starts_D) == 0 or starts_D[0] != 0 or (np.diff(starts_D) < 0).any()):
        raise DataError(
            f"document starts {starts_D[:5].tolist()}… are not ascending from 0",
            "every text token must belong to a document",
            "rebuild the packed data with `casa run`",
        )
    if len(positions_I) != len(tokens_I):
        raise DataError(
            f"{len(positions_I)} image positions but {len(tokens_I)} image sizes", "each image needs both", ""
        )
    if len(positions_I) and (
        (np.diff(positions_I) < 0).any() or positions_I[0] < 0 or positions_I[-1] >= text_length
    ):
        raise DataError(
            f"image positions {positions_I[:5].tolist()}… are unsorted or outside the {text_length} text "
            "tokens",
            "an image stands before the text token that follows it, so one must follow",
            "keep the template's post-image token after the last image",
        )
