"""Packed sequences → the tensors of one training forward.

Everything is flat: sequences and the documents in them stand one after the other in a single row, and
attention segments keep them apart. Nothing is padded, so the number of sequences in a batch is free.

Shape suffixes: T text tokens, P patches, E values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from casa_core.errors import DataError
from casa_core.inputs import ImageInputs, Packing, merged_grids


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSequence:
    """Some documents and the positions of their images, as the pack artifact stores them.

    Attributes:
        input_ids, loss_mask: One entry per text token.
        document_starts: Ascending, the first at 0.
        image_positions: For each image, the text token that follows it.
        image_tokens: Tokens of each image.
        image_grids: (rows, columns) of patches of each image.
        patches_PE: Patches of each image.
    """

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    document_starts: Sequence[int]
    image_positions: Sequence[int]
    image_tokens: Sequence[int]
    image_grids: Sequence[tuple[int, int]]
    patches_PE: Sequence[torch.Tensor]

    def without_images(self) -> PackedSequence:
        """The same text with every image withheld: what the blind baseline is trained on."""
        return replace(self, image_positions=(), image_tokens=(), image_grids=(), patches_PE=())


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Keyword arguments of :meth:`casa_core.model.CasaForConditionalGeneration.forward`.

    The loss mask stays on the host: which tokens are trained is counted there, without waiting for a device.
    """

    input_ids: torch.Tensor
    packing: Packing
    images: ImageInputs | None
    loss_mask: torch.Tensor

    def inputs(self) -> dict[str, Any]:
        """The fields by name, for the model's forward."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on a device; from pinned memory, the copy does not wait."""
        images = self.images
        if images is not None:
            images = replace(images, patches_PE=images.patches_PE.to(device, non_blocking=True))
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            images=images,
        )

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        images = self.images
        if images is not None:
            images = replace(images, patches_PE=images.patches_PE.pin_memory())
        return replace(self, input_ids=self.input_ids.pin_memory(), images=images)

    @property
    def text_tokens(self) -> int:
        """Text tokens in the batch."""
        return self.input_ids.numel()

    @property
    def image_tokens(self) -> int:
        """Image tokens in the batch."""
        return sum(self.packing.image_tokens)

    @property
    def trained_tokens(self) -> int:
        """Answer tokens in the batch."""
        return int(self.loss_mask.sum())


def collate(sequences: Sequence[PackedSequence], device: torch.device | str = "cpu") -> PackedBatch:
    """Join packed sequences into one flat batch on ``device``, for any fusion."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1].tolist()
    input_ids_T = np.concatenate([np.asarray(s.input_ids, dtype=np.int64) for s in sequences])
    loss_mask_T = np.concatenate([np.asarray(s.loss_mask, dtype=bool) for s in sequences])
    tokens = [n for s in sequences for n in s.image_tokens]
    grids = [grid for s in sequences for grid in s.image_grids]
    packing = Packing(
        document_starts=[
            start + offset
            for s, offset in zip(sequences, offsets, strict=True)
            for start in s.document_starts
        ],
        image_positions=[
            p + offset for s, offset in zip(sequences, offsets, strict=True) for p in s.image_positions
        ],
        image_tokens=tokens,
        image_grids=[token_grid(grid, n) for grid, n in zip(grids, tokens, strict=True)],
    )
    patches = [patches_PE for s in sequences for patches_PE in s.patches_PE]
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids_T)[None].to(device),
        packing=packing,
        images=ImageInputs(torch.cat(patches).to(device), grids) if patches else None,
        loss_mask=torch.from_numpy(loss_mask_T)[None],
    )


def token_grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """(rows, columns) of an image's tokens, from its patches' and their number.

    Raises:
        DataError: If the patches do not merge, square by square, into so many tokens.
    """
    rows, columns = grid
    merge = math.isqrt(rows * columns // max(tokens, 1))
    (merged,) = merged_grids([grid], max(merge, 1))
    if merged[0] * merged[1] != tokens or (merged[0] * merge, merged[1] * merge) != (rows, columns):
        raise DataError(
            f"An image of {rows} by {columns} patches does not merge into {tokens} tokens.",
            "A square of patches makes one token.",
            "Take both numbers from CasaProcessor.image_size and .grid.",
        )
    return merged
