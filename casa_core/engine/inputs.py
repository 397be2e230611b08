"""A conversation with its encoded pictures → tokens and patches, ready for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.cache import Extension
from casa_core.errors import MediaError
from casa_core.media import VideoFrames, decode_image
from casa_core.processing import CasaProcessor
from casa_core.types import Image, ImageSize, Sample


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, resized and cut into patches."""

    size: ImageSize
    grid: tuple[int, int]
    patches_PE: torch.Tensor


def prepare_image(rgb: NDArray[np.uint8], processor: CasaProcessor) -> PreparedImage:
    """Resize and patchify one decoded picture; the only way pixels enter the model."""
    size = processor.image_size(*rgb.shape[:2])
    return PreparedImage(size, processor.grid(size), processor.patches(rgb, size))


def decode_images(sample: Sample) -> list[NDArray[np.uint8]]:
    """Pixels of every image of a sample, in order; frames of one video are decoded in one pass.

    Raises:
        MediaError: If bytes are missing or cannot be decoded.
    """
    images = [part for part in sample.parts if isinstance(part, Image)]
    frames: dict[int, list[float]] = {}
    videos: dict[int, bytes] = {}
    for image in images:
        if image.data is None:
            raise MediaError(
                "missing_image", f"sample {sample.sample_id!r} names an image but carries no bytes"
            )
        if image.timestamp is not None:
            frames.setdefault(image.media, []).append(image.timestamp)
            videos[image.media] = image.data
    decoded = {media: iter(VideoFrames(videos[media]).at(times)) for media, times in frames.items()}
    return [
        decode_image(image.data) if image.timestamp is None else next(decoded[image.media])
        for image in images
        if image.data is not None
    ]


def prompt_extension(sample: Sample, processor: CasaProcessor, *, images_withheld: bool) -> Extension:
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
        return Extension(encoded.input_ids)
    images = [prepare_image(rgb, processor) for rgb in decode_images(sample)]
    encoded = processor.encode(sample, [image.size for image in images], add_generation_prompt=True)
    return image_extension(encoded.input_ids, encoded.image_positions, images)


def image_extension(
    ids: Sequence[int], image_positions: Sequence[int], images: Sequence[PreparedImage]
) -> Extension:
    """Tokens and the images among them, as the cache takes them."""
    return Extension(
        ids,
        image_positions,
        [image.patches_PE for image in images],
        [image.grid for image in images],
        [image.size.tokens for image in images],
    )


_UNSEEN = ImageSize(0, 0, 0, 0, 0)
