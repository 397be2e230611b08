"""From a conversation with encoded images to token ids and image patches, ready for the model.

Shape suffixes: P patches of an image, E numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.decoding.kv_batch import TokenChunk
from casa_core.media.decode import decode_images
from casa_core.processing.prepare import prepare_images
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, ImageSize, Sample


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, resized and cut into patches: its size, its grid (rows, columns) of patches, the patches."""

    size: ImageSize
    grid: tuple[int, int]
    patches_PE: torch.Tensor


def prepare_image(
    pixels: NDArray[np.uint8],
    processor: CasaProcessor,
    *,
    frame: bool = False,
    most_tokens: int | None = None,
) -> PreparedImage:
    """Resize and patchify one decoded image or video frame (H, W, 3); all pixels enter the model here.

    ``most_tokens`` bounds a frame of a video that would be over its budget.
    """
    size = processor.image_size(*pixels.shape[:2], frame=frame, most_tokens=most_tokens)
    return PreparedImage(size, processor.grid(size), processor.patches(pixels, size))


def prompt_chunk(sample: Sample, processor: CasaProcessor, *, images_withheld: bool) -> TokenChunk:
    """The prompt of a conversation that ends with a user turn.

    Args:
        images_withheld: Keep the template's image tokens but no images, as the blind baseline was trained.

    Raises:
        MediaError: If an image cannot be decoded.
    """
    if images_withheld:
        count = sum(isinstance(part, Image) for part in sample.parts)
        encoded = processor.encode(sample, [_UNSEEN] * count, add_generation_prompt=True)
        return TokenChunk(encoded.input_ids)
    shown = prepare_images(processor.image_settings, sample, decode_images(sample))
    encoded = processor.encode(shown.sample, shown.sizes, add_generation_prompt=True)
    images = [
        PreparedImage(size, processor.grid(size), patches_PE)
        for size, patches_PE in zip(shown.sizes, shown.patches_PE, strict=True)
    ]
    return image_chunk(encoded.input_ids, encoded.image_positions, images)


def image_chunk(
    ids: Sequence[int], image_positions: Sequence[int], images: Sequence[PreparedImage]
) -> TokenChunk:
    """Tokens and the images before the tokens at ``image_positions``, as :class:`TokenChunk`."""
    return TokenChunk(
        ids,
        image_positions,
        [image.patches_PE for image in images],
        [image.grid for image in images],
        [image.size.tokens for image in images],
    )


_UNSEEN = ImageSize(0, 0, 0, 0, 0)
