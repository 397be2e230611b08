"""Batches in transformers' form (rows padded on either side, images beside them) → what the model runs on.

Padding never reaches the model: real tokens of all rows become packed documents of one flat row, or
chunks of cached sequences. All of this is computed on the host.

Shape suffixes: B rows, L columns of a padded row, K kept columns, T real tokens of all rows, I images, P
patches, E values of a patch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.compiling import on_host
from casa_core.config import CasaConfig
from casa_core.decoding.plan import TokenChunk
from casa_core.errors import DataError
from casa_core.inputs import IMAGE_INPUTS, Packing, merged_grids

_FROM_PROCESSOR = "Take the image inputs from one call of CasaProcessor, all four together."


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedImages:
    """Images of a padded batch, in reading order: row by row, ascending in each.

    Attributes:
        patches_PE: Patches of all images.
        grids: (rows, columns) of patches of each image.
        rows: The row of the batch each image is in.
        columns: The column, padding counted, of the token that follows it.
        merge: Side of the square of patches that makes one token.
    """

    patches_PE: torch.Tensor
    grids: Sequence[tuple[int, int]]
    rows: Sequence[int]
    columns: Sequence[int]
    merge: int

    @property
    def merged_grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of tokens of each image."""
        return merged_grids(self.grids, self.merge)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each image."""
        return [h * w for h, w in self.merged_grids]

    @property
    def each_patches(self) -> list[torch.Tensor]:
        """Patches of each image, on its own."""
        return list(self.patches_PE.split([h * w for h, w in self.grids]))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of text, padded to one length, and their images.

    Attributes:
        input_ids: (B, L), padding of any value.
        real_BL: True where a token is; padding may stand anywhere.
        images: ``None`` without any.
    """

    input_ids: torch.Tensor
    real_BL: NDArray[np.bool_]
    images: PaddedImages | None = None

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        return self.real_BL.sum(axis=1).tolist()

    @on_host
    def latest_tokens(self) -> NDArray[np.int64]:
        """(B, L): for each column the flat index of its row's last real token up to it; T without one.

        So the padding behind a row repeats its last prediction, and rows padded on the right can grow.
        """
        lengths = self.real_BL.sum(axis=1)
        read_BL = self.real_BL.cumsum(axis=1)
        flat_BL = (lengths.cumsum() - lengths)[:, None] + read_BL - 1
        return np.where(read_BL > 0, flat_BL, lengths.sum())

    def predicted(self) -> NDArray[np.bool_]:
        """(B, L): the real tokens that follow another of their row, which are those a model predicts."""
        return self.real_BL & (self.real_BL.cumsum(axis=1) > 1)

    @on_host
    def packed(self, device: torch.device) -> tuple[torch.Tensor, Packing]:
        """(1, T) real tokens of all rows, a document each, and where their images stand.

        Raises:
            DataError: If a row has no token at all.
        """
        lengths = self.lengths
        check_lengths(lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        index_T = torch.from_numpy(np.flatnonzero(self.real_BL)).to(device)
        ids_1T = self.input_ids.to(device).flatten().index_select(0, index_T)[None]
        if self.images is None:
            return ids_1T, Packing(document_starts=starts.tolist())
        token_BL = self.latest_tokens()
        return ids_1T, Packing(
            document_starts=starts.tolist(),
            image_positions=token_BL[self.images.rows, self.images.columns].tolist(),
            image_tokens=self.images.tokens,
            image_grids=self.images.merged_grids,
        )

    def chunks(self, start: int, stop: int) -> list[TokenChunk | None]:
        """The real tokens of some columns and the images among them; ``None`` for a row without any."""
        ids_BL = self.input_ids.tolist()
        patches = self.images.each_patches if self.images else []
        chunks: list[TokenChunk | None] = []
        for row, (ids_L, real_L) in enumerate(zip(ids_BL, self.real_BL, strict=True)):
            columns = [column for column in range(start, stop) if real_L[column]]
            if not columns:
                chunks.append(None)
                continue
            ids = [ids_L[column] for column in columns]
            own = self._images_of(row, start, stop)
            if self.images is None or not own:
                chunks.append(TokenChunk(ids))
                continue
            chunks.append(
                TokenChunk(
                    ids,
                    [columns.index(self.images.columns[n]) for n in own],
                    [patches[n] for n in own],
                    [self.images.grids[n] for n in own],
                    [self.images.tokens[n] for n in own],
                )
            )
        return chunks

    def _images_of(self, row: int, start: int, stop: int) -> list[int]:
        images = self.images
        if images is None:
            return []
        return [n for n, own in enumerate(images.rows) if own == row and start <= images.columns[n] < stop]


@on_host
def read_padded(
    config: CasaConfig,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    images: Mapping[str, torch.Tensor | None],
    past_columns: int = 0,
) -> PaddedBatch:
    """Check a batch as transformers passes it, and read it.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L), or (B, past_columns + L): 1 where a token is, 0 for padding.
        images: The values of :data:`IMAGE_INPUTS`: ``pixel_values`` (P, E) in reading order,
            ``image_grid_thw`` (I, 3) patches, ``image_rows`` (I,), ``image_positions`` (I,): columns of
            ``input_ids``.
        past_columns: Columns that a cache has read before these.

    Raises:
        DataError: Naming the input that does not fit, its value, and what to do.
    """
    if input_ids is None or input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
        raise DataError(
            f"`input_ids` is {_described(input_ids)}.",
            "The model reads token ids of shape (rows, tokens).",
            "Pass the processor's input_ids.",
        )
    real_BL = _real(input_ids, attention_mask, past_columns)
    given = {name: value for name, value in images.items() if value is not None}
    if not given:
        return PaddedBatch(input_ids, real_BL)
    missing = [name for name in IMAGE_INPUTS if name not in given]
    if missing:
        raise DataError(
            f"{', '.join(given)} came without {', '.join(missing)}.",
            "An image needs its patches, its grid, its row and its position in the row.",
            _FROM_PROCESSOR,
        )
    read = _read_images(config, real_BL, **given)
    # The blind baseline was trained on the same tokens with every image left out.
    return PaddedBatch(input_ids, real_BL, None if config.images_withheld else read)


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuse a row without any token.

    Raises:
        DataError: Naming the row.
    """
    if 0 in lengths:
        raise DataError(
            f"Row {lengths.index(0)} of the batch has no token.",
            "Its attention_mask is 0 everywhere.",
            "Leave the row out, or give it a first token.",
        )


def kept_columns(logits_to_keep: int | torch.Tensor, length: int) -> NDArray[np.int64]:
    """(K,) columns whose logits are wanted: the last so many (0: all), or those a tensor names.

    Raises:
        DataError: If a column lies outside the row.
    """
    if isinstance(logits_to_keep, int) and logits_to_keep >= 0:
        return np.arange(length)[-logits_to_keep:]
    columns_K = np.asarray(torch.as_tensor(logits_to_keep).cpu())
    if columns_K.ndim != 1 or len(columns_K) == 0 or columns_K.min() < -length or columns_K.max() >= length:
        raise DataError(
            f"`logits_to_keep = {logits_to_keep}` does not fit rows of {length} tokens.",
            "It is a number of last tokens (0: all), or a tensor of their indices.",
            "Pass 0, a number, or indices within the row.",
        )
    return columns_K % length


def _real(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past_columns: int
) -> NDArray[np.bool_]:
    rows, columns = input_ids.shape
    if attention_mask is None:
        return np.ones((rows, columns), dtype=bool)
    fitting = [(rows, columns), (rows, past_columns + columns)]
    if tuple(attention_mask.shape) not in fitting:
        raise DataError(
            f"`attention_mask` is of shape {tuple(attention_mask.shape)}, input_ids of {(rows, columns)}.",
            f"Expected {' or '.join(str(shape) for shape in dict.fromkeys(fitting))}: 1 for a token, 0 for "
            "padding.",
            "Pass the processor's attention_mask; which token sees which, the model decides.",
        )
    return attention_mask[:, -columns:].cpu().numpy().astype(bool)


def _read_images(
    config: CasaConfig,
    real_BL: NDArray[np.bool_],
    pixel_values: torch.Tensor,
    image_grid_thw: torch.Tensor,
    image_rows: torch.Tensor,
    image_positions: torch.Tensor,
) -> PaddedImages:
    vision = config.vision_config
    merge = vision.spatial_merge_size
    for name, value, shape in (
        ("image_grid_thw", image_grid_thw, (len(image_rows), 3)),
        ("image_positions", image_positions, (len(image_rows),)),
        ("image_rows", image_rows, (len(image_rows),)),
    ):
        if tuple(value.shape) != shape or value.is_floating_point():
            raise DataError(
                f"`{name}` is {_described(value)}.",
                f"With {len(image_rows)} image_rows it is expected as integers of shape {shape}.",
                _FROM_PROCESSOR,
            )
    grids = [(int(t), int(h), int(w)) for t, h, w in image_grid_thw.tolist()]
    for number, (time, height, width) in enumerate(grids):
        if time != 1 or min(height, width) < 1 or height % merge or width % merge:
            raise DataError(
                f"`image_grid_thw[{number}] = {(time, height, width)}` is no image of this model.",
                f"An image is 1 frame, its height and width in patches multiples of {merge}.",
                "Pass each frame of a video as an image of its own; take grids from CasaProcessor.",
            )
    values = vision.in_channels * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1)
    expected = (sum(h * w for _, h, w in grids), values)
    if tuple(pixel_values.shape) != expected or not pixel_values.is_floating_point():
        raise DataError(
            f"`pixel_values` is {_described(pixel_values)}.",
            f"Its {len(grids)} grids and patches of {values} values call for floating point of shape "
            f"{expected}.",
            _FROM_PROCESSOR,
        )
    positions = list(zip(image_rows.tolist(), image_positions.tolist(), strict=True))
    _check_positions(positions, real_BL)
    return PaddedImages(
        patches_PE=pixel_values,
        grids=[(h, w) for _, h, w in grids],
        rows=[row for row, _ in positions],
        columns=[column for _, column in positions],
        merge=merge,
    )


def _check_positions(positions: Sequence[tuple[int, int]], real_BL: NDArray[np.bool_]) -> None:
    rows, columns = real_BL.shape
    for number, (row, column) in enumerate(positions):
        if not 0 <= row < rows:
            raise DataError(
                f"`image_rows[{number}] = {row}` does not exist.",
                f"The batch has rows 0 to {rows - 1}.",
                _FROM_PROCESSOR,
            )
        if not (0 <= column < columns and real_BL[row, column]):
            raise DataError(
                f"`image_positions[{number}] = {column}` is no token of row {row}.",
                f"It is the index, padding counted, of the token after the image, in a row of {columns}.",
                "Take it from CasaProcessor, and add what you padded on the left yourself.",
            )
        if number and (row, column) < positions[number - 1]:
            raise DataError(
                f"Image {number} at (row, position) = {(row, column)} comes after one at "
                f"{positions[number - 1]}.",
                "Images are passed in reading order.",
                "Order the images by row and position, their patches and grids with them.",
            )


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
