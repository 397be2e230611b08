"""From a conversation with encoded images to token ids and image patches, ready for the model.

Shape suffixes: P patches of an image, E numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.decoding.kv_batch import TokenChunk
from casa_core.engine.protocol import FrameImage
from casa_core.errors import DataError
from casa_core.media.decode import decode_image, decode_images
from casa_core.media.limits import MAX_PIXELS
from casa_core.processing.prepare import prepare_images
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, ImageSize, Sample, Text


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


def prompt_chunk(
    sample: Sample,
    processor: CasaProcessor,
    *,
    images_withheld: bool,
    context: int | None = None,
    answer: int = 0,
) -> TokenChunk:
    """The prompt of a conversation that ends with a user turn.

    Args:
        images_withheld: Keep the template's image tokens but no images, as the blind baseline was trained.
        context: Text tokens that it may have together with an ``answer``; inserted image tokens are not
            counted, as in transformers.

    Raises:
        MediaError: If an image cannot be decoded.
        DataError: If the text is longer.
    """
    if context is not None:
        _check_length(sample, processor, context, answer)
    prompt = _prompt_chunk(sample, processor, images_withheld)
    if context is not None and len(prompt.ids) + answer > context:
        raise _too_long(f"{len(prompt.ids)}", context, answer)
    return prompt


def _prompt_chunk(sample: Sample, processor: CasaProcessor, images_withheld: bool) -> TokenChunk:
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


def _check_length(sample: Sample, processor: CasaProcessor, context: int, answer: int) -> None:
    """Refuse a text that is much too long before all of it is tokenized, which takes memory and time."""
    most = left = context - answer
    for (is_text, _), parts in groupby(sample.parts, key=lambda part: (isinstance(part, Text), part.role)):
        if not is_text or left < 0:
            continue
        # Together, as some templates tokenize them; and the template adds a token to each run, or more.
        text = "".join(part.text for part in parts if isinstance(part, Text))
        left -= count_tokens(text, processor, left) + 1
    if left < 0:
        raise _too_long(f"at least {most - left}", context, answer)


def count_tokens(text: str, processor: CasaProcessor, most: int) -> int:
    """The tokens of a text. Of one of more than ``most``, no more is read than shows this, and the number may
    be smaller than the text's, but not than ``most``."""
    beyond = most + _AT_THE_CUT  # a beginning's last tokens may be others than they are in the whole
    shown = _CHARACTERS * beyond
    while True:
        words = processor.tokenizer.encode(text[:shown], add_special_tokens=False, split_special_tokens=True)
        if shown >= len(text):
            return len(words)
        if len(words) > beyond:
            return len(words) - _AT_THE_CUT
        shown *= 2


_CHARACTERS = 8  # most texts have fewer per token
_AT_THE_CUT = 64


def _too_long(tokens: str, context: int, answer: int) -> DataError:
    return DataError(
        f"A prompt of {tokens} tokens and an answer of up to {answer} do not fit the model's context of "
        f"{context} tokens.",
        "Prompt and answer share one context; image tokens are not counted.",
        "Shorten the conversation or ask for fewer tokens.",
    )


def frame_chunk(
    image: FrameImage | None,
    processor: CasaProcessor,
    *,
    images_withheld: bool,
    max_pixels: int = MAX_PIXELS,
) -> TokenChunk:
    """A frame of a live stream and the token after it.

    Args:
        image: ``None`` where ``images_withheld``.
        max_pixels: Refuse an encoded frame with more before it is decoded.

    Raises:
        MediaError: If the frame cannot be decoded.
        DataError: If there is none.
    """
    if images_withheld:
        return TokenChunk([processor.image_id])
    if image is None:
        raise DataError(
            "A frame has no image.", "Only a blind model takes frames without one.", "Pass its bytes."
        )
    pixels = decode_image(image, max_pixels=max_pixels) if isinstance(image, bytes) else image
    return image_chunk([processor.image_id], [0], [prepare_image(pixels, processor, frame=True)])


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
