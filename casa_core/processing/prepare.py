"""The images of a conversation → patches, its whole videos fitted to their budget, for inference.

Shape suffixes: P patches of an image, E numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from casa_core.errors import MediaError
from casa_core.media.decode import image_sizes
from casa_core.media.images import ImageSettings
from casa_core.media.video_budget import fit_sample, of_whole_video
from casa_core.types import Image, ImageSize, Sample


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """The images of a conversation, ready for the vision tower.

    Attributes:
        sample: The conversation, without frames that were left out of a video over its budget.
        sizes: Size of each of its images, in order.
        patches_PE: Patches of each.
    """

    sample: Sample
    sizes: list[ImageSize]
    patches_PE: list[torch.Tensor]


def prepare_images(
    settings: ImageSettings, sample: Sample, pictures: Iterable[NDArray[np.uint8]]
) -> PreparedImages:
    """A conversation's images as patches, its whole videos fitted to ``settings.max_video_tokens``.

    Args:
        pictures: Pixels of each image in order, (height, width, 3); taken one by one.

    Raises:
        MediaError: If an image cannot be read or resized; ``image`` is its number.
    """
    parts = [part for part in sample.parts if isinstance(part, Image)]
    kept, most = None, None
    if settings.max_video_tokens is not None and any(map(of_whole_video, parts)):
        if any(part.data is None for part in parts):  # the caller's pixels, which are in memory
            pictures = list(pictures)
            natives = [rgb.shape[:2] for rgb in pictures]
        else:
            natives = image_sizes(sample)
        fitted = fit_sample(settings, sample, natives, settings.max_video_tokens)
        sample, kept, most = fitted.sample, set(fitted.kept), fitted.most_tokens
    found = PreparedImages(sample, [], [])
    done = 0
    try:
        for part, rgb in zip(parts, pictures, strict=True):  # taking one decodes it
            if kept is None or done in kept:
                bound = most if of_whole_video(part) else None
                size = settings.size(*rgb.shape[:2], frame=part.timestamp is not None, most_tokens=bound)
                found.sizes.append(size)
                found.patches_PE.append(settings.patches(rgb, size))
            done += 1
    except MediaError as error:
        error.image = done
        raise
    return found
