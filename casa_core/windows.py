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

    document_T = np.searchsorted(starts_D, np.arange(text_length), side="right") - 1
    document_I = np.searchsorted(starts_D, positions_I, side="right") - 1

    # A run is what opens a window: a carried one at its document's start, or the first of consecutive images.
    carried = [(d, c) for d, c in enumerate(carries or ()) if c is not None]
    new_run_I = np.ones(len(positions_I), dtype=bool)
    new_run_I[1:] = positions_I[1:] != positions_I[:-1]
    run_start_R = np.concatenate([starts_D[[d for d, _ in carried]], positions_I[new_run_I]]).astype(np.int64)
    run_document_R = np.concatenate(
        [np.array([d for d, _ in carried], dtype=np.int64), document_I[new_run_I]]
    )
    run_of_image_I = np.cumsum(new_run_I) - 1 + len(carried)
    run_tokens_R = np.bincount(run_of_image_I, weights=tokens_I, minlength=len(run_start_R)).astype(np.int64)
    run_offset_R = np.zeros(len(run_start_R), dtype=np.int64)
    for row, (_, carry) in enumerate(carried):
        run_tokens_R[row], run_offset_R[row] = carry.image_tokens, carry.text_tokens

    # Stable order by start puts a carried run before a new image at the same place, and numbers windows as
    # read.
    order_R = np.argsort(run_start_R, kind="stable")
    window_of_run_R = np.empty_like(order_R)
    window_of_run_R[order_R] = np.arange(len(order_R))

    text_window_T, text_position_T = _place_text(
        document_T,
        run_start_R[order_R],
        run_document_R[order_R],
        run_tokens_R[order_R],
        run_offset_R[order_R],
    )
    image_runs_N = np.concatenate(
        [
            np.repeat(np.arange(len(carried)), run_tokens_R[: len(carried)]),
            np.repeat(run_of_image_I, tokens_I),
        ]
    ).astype(np.int64)
    last_window_D = np.full(len(starts_D), -1, dtype=np.int64)
    last_window_D[run_document_R[order_R]] = np.arange(len(order_R))  # later runs overwrite earlier ones
    return Windows(
        text_window_T=text_window_T,
        text_position_T=text_position_T,
        image_window_N=window_of_run_R[image_runs_N],
        image_position_N=_index_in_run(image_runs_N),
        carried_tokens=int(run_tokens_R[: len(carried)].sum()),
        count=len(run_start_R),
        last_window_D=last_window_D,
    )


def _place_text(
    document_T: IntArray, start_W: IntArray, document_W: IntArray, tokens_W: IntArray, offset_W: IntArray
) -> tuple[IntArray, IntArray]:
    """Window and position of each text token: the last run at or before it, if that run is its document's
    own."""
    index_T = np.arange(len(document_T))
    if len(start_W) == 0:
        return np.full(len(document_T), -1, dtype=np.int64), np.zeros(len(document_T), dtype=np.int64)
    window_T = np.searchsorted(start_W, index_T, side="right") - 1
    own_T = (window_T >= 0) & (document_W[np.maximum(window_T, 0)] == document_T)
    window_T = np.where(own_T, window_T, -1)
    position_T = tokens_W[window_T] + offset_W[window_T] + index_T - start_W[window_T]
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
