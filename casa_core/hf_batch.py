"""Batches in transformers' form (rows padded on either side, images beside them) → what the model runs on.

Padding never reaches the model: real tokens of all rows become packed documents of one flat row, or
chunks of cached sequences. All of this is computed on the host.

Shape suffixes: B rows, L columns of a padded row, K kept columns, T real tokens of all rows, I images, P
patches, E values of a patch, C width, V vocabulary.
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

_FROM_PROCESSOR = "Take the image inputs from one call of CasaProcessor, all three together."


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
        input_ids: (B, L), padding of any value; or the embeddings of tokens, (B, L, C).
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

    @on_host
    def own_tokens(self) -> NDArray[np.int64]:
        """(B, L): the flat index of each real token; T in padding."""
        index_BL = self.real_BL.cumsum().reshape(self.real_BL.shape) - 1
        return np.where(self.real_BL, index_BL, self.real_BL.sum())

    @on_host
    def checked_labels(self, labels: torch.Tensor, columns: int) -> torch.Tensor:
        """(B, L) labels of the real tokens that follow another of their row; -100 for all others.

        Args:
            columns: Columns whose logits are computed.

        Raises:
            DataError: If there is not a label for each column of each row.
        """
        if labels.shape != self.real_BL.shape or columns != labels.shape[1]:
            raise DataError(
                f"Labels of shape {tuple(labels.shape)} for {columns} columns of logits and input_ids "
                f"of shape {self.real_BL.shape}.",
                "Every token has a label, -100 where it is not to be predicted.",
                "Pass labels shaped like input_ids, and leave logits_to_keep at 0.",
            )
        predicted_BL = torch.from_numpy(self.real_BL & (self.real_BL.cumsum(axis=1) > 1))
        return labels.masked_fill(~predicted_BL.to(labels.device), -100)

    @on_host
    def packed(self, device: torch.device) -> tuple[torch.Tensor, Packing]:
        """(1, T) real tokens of all rows, or their embeddings (1, T, C), a document per row, and where their
        images stand.

        Raises:
            DataError: If a row has no token at all.
        """
        lengths = self.lengths
        check_lengths(lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        index_T = torch.from_numpy(np.flatnonzero(self.real_BL)).to(device)
        ids_1T = self.input_ids.to(device).flatten(0, 1).index_select(0, index_T)[None]
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
    inputs_embeds: torch.Tensor | None = None,
) -> PaddedBatch:
    """Check a batch as transformers passes it, and read it.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L), or (B, past_columns + L): 1 where a token is, 0 for padding.
        images: The values of :data:`IMAGE_INPUTS`: ``pixel_values`` (P, E) in reading order,
            ``image_grid_thw`` (I, 3) patches, ``image_counts`` (B, L): the images right before each token.
        past_columns: Columns that a cache has read before these.
        inputs_embeds: (B, L, C) in the place of ``input_ids``.

    Raises:
        DataError: Naming the input that does not fit, its value, and what to do.
    """
    tokens = _tokens(config, input_ids, inputs_embeds)
    real_BL = _real(tokens, attention_mask, past_columns)
    given = {name: value for name, value in images.items() if value is not None}
    if not given:
        return PaddedBatch(tokens, real_BL)
    missing = [name for name in IMAGE_INPUTS if name not in given]
    if missing:
        raise DataError(
            f"{', '.join(given)} came without {', '.join(missing)}.",
            "An image needs its patches, its grid and its place among the tokens.",
            _FROM_PROCESSOR,
        )
    read = _read_images(config, real_BL, **given)
    # The blind baseline was trained on the same tokens with every image left out.
    return PaddedBatch(tokens, real_BL, None if config.images_withheld else read)


def image_places(counts_BL: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(I,) rows and (I,) columns of a batch's images, in reading order, from the images before each token."""
    rows, columns = np.nonzero(counts_BL)
    images = counts_BL[rows, columns]
    return rows.repeat(images), columns.repeat(images)


@on_host
def states_at(hidden_TC: torch.Tensor, index_BL: NDArray[np.int64]) -> torch.Tensor:
    """(B, L, C) states of the tokens at these flat indices; zeros for the index T."""
    index = torch.from_numpy(index_BL).to(hidden_TC.device)
    padded_TC = torch.cat([hidden_TC, hidden_TC.new_zeros(1, hidden_TC.shape[1])])
    return padded_TC.index_select(0, index.flatten()).view(*index.shape, -1)


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


def _tokens(
    config: CasaConfig, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
) -> torch.Tensor:
    """The one of the two that was given, checked."""
    if inputs_embeds is None:
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
            raise DataError(
                f"`input_ids` is {_described(input_ids)}.",
                "The model reads token ids of shape (rows, tokens).",
                "Pass the processor's input_ids.",
            )
        return input_ids
    if input_ids is not None:
        raise DataError(
            "Both input_ids and inputs_embeds were passed.",
            "Embeddings stand in the place of token ids.",
            "Pass one of them.",
        )
    width = config.text_config.hidden_size
    floating = inputs_embeds.is_floating_point() and inputs_embeds.numel() > 0
    if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != width or not floating:
        raise DataError(
            f"`inputs_embeds` is {_described(inputs_embeds)}.",
            f"The model reads floating point of shape (rows, tokens, {width}).",
            "Take them from model.get_input_embeddings().",
        )
    return inputs_embeds


def _real(tokens: torch.Tensor, attention_mask: torch.Tensor | None, past_columns: int) -> NDArray[np.bool_]:
    rows, columns = tokens.shape[:2]
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
    image_counts: torch.Tensor,
) -> PaddedImages | None:
    vision = config.vision_config
    merge = vision.spatial_merge_size
    counts_BL = _checked_counts(image_counts, real_BL)
    rows, columns = image_places(counts_BL)
    shape = (len(rows), 3)
    if tuple(image_grid_thw.shape) != shape or image_grid_thw.is_floating_point():
        raise DataError(
            f"`image_grid_thw` is {_described(image_grid_thw)}.",
            f"With {len(rows)} images in image_counts it is expected as integers of shape {shape}.",
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
    if not grids:
        return None
    return PaddedImages(
        patches_PE=pixel_values,
        grids=[(h, w) for _, h, w in grids],
        rows=rows.tolist(),
        columns=columns.tolist(),
        merge=merge,
    )


def _checked_counts(image_counts: torch.Tensor, real_BL: NDArray[np.bool_]) -> NDArray[np.int64]:
    if tuple(image_counts.shape) != real_BL.shape or image_counts.is_floating_point():
        raise DataError(
            f"`image_counts` is {_described(image_counts)}.",
            f"It holds the images right before each token: integers shaped like input_ids, {real_BL.shape}.",
            "Take it from CasaProcessor, and pad it with 0 where you pad input_ids.",
        )
    counts_BL = image_counts.cpu().numpy().astype(np.int64)
    wrong = np.argwhere((counts_BL < 0) | ((counts_BL != 0) & ~real_BL))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise DataError(
            f"`image_counts[{row}, {column}] = {counts_BL[row, column]}` does not fit.",
            "There is a number of images, 0 or more, before each token, and none before padding.",
            "Take it from CasaProcessor, and pad it with 0 where you pad input_ids.",
        )
    return counts_BL


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
