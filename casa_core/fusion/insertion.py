"""Token insertion: image tokens join the text stream (paper, eq. 1).

Only the order of tokens and their positions are decided here; the language model then runs the joint stream
as if it were text. Image tokens stand right before the text token at their image's position.

Shape suffixes: T text tokens, N image tokens, S tokens of the joint stream, D documents, I images, A position
axes (1, or 3 for multimodal RoPE: time, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from casa_core.fusion.windows import IntArray, grid_positions


@dataclass(frozen=True, slots=True)
class JointStream:
    """Text and image tokens of some documents, in reading order, documents one after the other.

    Attributes:
        text_index_T: Index of each text token in the stream.
        image_index_N: Index of each image token in the stream.
        document_S: Document of each stream token.
        position_AS: RoPE positions. Text counts one; an image of r × c tokens takes max(r, c) positions of
            multimodal RoPE (as transformers' Qwen2.5-VL has it), and as many as its tokens otherwise.
        length_D: Stream tokens of each document.
        next_position_D: Position of the token that would follow each document.
    """

    text_index_T: IntArray
    image_index_N: IntArray
    document_S: IntArray
    position_AS: IntArray
    length_D: IntArray
    next_position_D: IntArray


def joint_stream(
    *,
    text_length: int,
    document_starts: Sequence[int],
    image_positions: Sequence[int],
    image_tokens: Sequence[int],
    image_grids: Sequence[tuple[int, int]] | None,
    axes: int,
    first_positions: Sequence[int] | None = None,
) -> JointStream:
    """Order text and image tokens, and give them positions.

    Args:
        document_starts, image_positions: As in :class:`casa_core.inputs.Packing`.
        image_tokens: Tokens each image puts into the stream.
        image_grids: (rows, columns) of each image's tokens; ``None`` where image tokens count like text
            (one-dimensional RoPE, and the tokens of a Q-Former, which have no position in the picture).
        first_positions: Position at which each document goes on; 0 by default.
    """
    starts_D = np.asarray(document_starts, dtype=np.int64)
    position_I = np.asarray(image_positions, dtype=np.int64)
    tokens_I = np.asarray(image_tokens, dtype=np.int64)
    index_T = np.arange(text_length)
    document_T = np.searchsorted(starts_D, index_T, side="right") - 1
    document_I = document_T[position_I]
    grids_I2 = None if image_grids is None else np.asarray(image_grids, dtype=np.int64).reshape(-1, 2)
    step_I = tokens_I if grids_I2 is None else grids_I2.max(axis=1, initial=0)

    seen_T = np.searchsorted(position_I, index_T, side="right")  # images at or before each text token
    tokens_before = np.concatenate([[0], np.cumsum(tokens_I)])
    steps_before = np.concatenate([[0], np.cumsum(step_I)])
    images_before_D = np.searchsorted(position_I, starts_D, side="left")
    text_index_T = index_T + tokens_before[seen_T]
    image_index = np.arange(len(tokens_I))
    index_N = np.arange(tokens_before[-1]) - np.repeat(tokens_before[:-1], tokens_I)
    image_index_N = np.repeat(position_I + tokens_before[image_index], tokens_I) + index_N

    first_D = (
        np.zeros(len(starts_D), dtype=np.int64) if first_positions is None else np.asarray(first_positions)
    )
    base_D = first_D - starts_D - steps_before[images_before_D]
    text_position_T = base_D[document_T] + index_T + steps_before[seen_T]
    start_I = base_D[document_I] + position_I + steps_before[image_index]
    image_position_AN = np.repeat(start_I, tokens_I)[None].repeat(axes, axis=0)
    if grids_I2 is None:
        image_position_AN = image_position_AN + index_N
    else:
        image_position_AN = image_position_AN + grid_positions(index_N, np.repeat(grids_I2[:, 1], tokens_I))

    total = text_length + int(tokens_before[-1])
    position_AS = np.zeros((axes, total), dtype=np.int64)
    position_AS[:, text_index_T] = text_position_T
    position_AS[:, image_index_N] = image_position_AN
    document_S = np.zeros(total, dtype=np.int64)
    document_S[text_index_T] = document_T
    document_S[image_index_N] = np.repeat(document_I, tokens_I)
    count = len(starts_D)
    text_D = np.bincount(document_T, minlength=count)
    steps_D = np.bincount(document_I, weights=step_I, minlength=count).astype(np.int64)
    return JointStream(
        text_index_T=text_index_T,
        image_index_N=image_index_N,
        document_S=document_S,
        position_AS=position_AS,
        length_D=np.bincount(document_S, minlength=count),
        next_position_D=first_D + text_D + steps_D,
    )
