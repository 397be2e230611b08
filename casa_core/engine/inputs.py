"""A conversation with its encoded pictures → tokens and patches, ready for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.decoding.kv_batch import TokenChunk
from casa_core.media.decode import decode_images
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, ImageSize, Sample


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, resized and cut into patches."""

    size: ImageSize
    grid: tuple[int, int]
    patches_PE: torch.Tensor


def prepare_image(rgb: NDArray[np.uint8], processor: CasaProcessor, *, frame: bool = False) -> PreparedImage:
    """Resize and patchify one decoded picture, or frame of a video; the only way pixels enter the model."""
    size = processor.image_size(*rgb.shape[:2], frame=frame)
    return PreparedImage(size, processor.grid(size), processor.patches(rgb, size))


def prompt_extension(sample: Sample, processor: CasaProcessor, *, images_withheld: bool) -> TokenChunk:
    """The prompt of a conversation that ends with a user turn.

    Args:
        sample: The conversation.
        processor: Its template and image settings.
        images_withheld: Keep the template's image tokens but show no image: how the blind baseline was
            trained.
    """
    if images_withheld:
        count = sum(isinstance(part, Image) for part in sample.parts)
        encoded = processor.encode(sample, [_UNSEEN] * count, add_generation_prompt=True)
        return TokenChunk(encoded.input_ids)
    parts = [part for part in sample.parts if isinstance(part, Image)]
    images = [
        prepare_image(rgb, processor, frame=part.timestamp is not None)
        for part, rgb in zip(parts, decode_images(sample), strict=True)
    ]
    encoded = processor.encode(sample, [image.size for image in images], add_generation_prompt=True)
    return image_extension(encoded.input_ids, encoded.image_positions, images)


def image_extension(
    ids: Sequence[int], image_positions: Sequence[int], images: Sequence[PreparedImage]
) -> TokenChunk:
    """Tokens and the images among them, as the cache takes them."""
    return TokenChunk(
        ids,
        image_positions,
        [image.patches_PE for image in images],
        [image.grid for image in images],
        [image.size.tokens for image in images],
    )


_UNSEEN = ImageSize(0, 0, 0, 0, 0)
