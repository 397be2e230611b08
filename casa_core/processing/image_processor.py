"""The image side of a processor alone, as transformers' pipelines look for it.

Shape suffixes: P patches of all pictures, E values of a patch, I pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from casa_core.media.images import ImageSettings
from casa_core.processing.call_options import CallOptions
from casa_core.processing.picture_sources import picture_to_rgb
from casa_core.types import ImageSize

if TYPE_CHECKING:
    from casa_core.processing.processor import CasaProcessor


def image_tensors(
    settings: ImageSettings, patches_PE: Sequence[torch.Tensor], sizes: Sequence[ImageSize]
) -> dict[str, torch.Tensor]:
    """``pixel_values`` (P, E) and ``image_grid_thw`` (I, 3) of some pictures; empty ones of none."""
    values = 3 * settings.temporal_patch_size * settings.patch_size**2
    grids = [(1, *settings.grid(size)) for size in sizes]
    return {
        "pixel_values": torch.cat(list(patches_PE)) if patches_PE else torch.zeros(0, values),
        "image_grid_thw": torch.tensor(grids, dtype=torch.long).view(-1, 3),
    }


class CasaImageProcessor(BaseImageProcessor):
    """Pictures → patches, by the settings of a processor as they are when it is called.

    Args:
        processor: Has the settings.
    """

    model_input_names = ["pixel_values", "image_grid_thw"]  # noqa: RUF012 (transformers' contract)

    def __init__(self, processor: CasaProcessor) -> None:
        super().__init__()
        self.processor = processor

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, return_tensors: str = "pt", **options: Any
    ) -> BatchFeature:
        """Patches of one picture or of a list of them.

        Args:
            images: In any spelling of :mod:`casa_core.processing.picture_sources`.
            return_tensors: ``pt``.
            options: As a processor takes them.

        Returns:
            ``pixel_values`` (P, E) and ``image_grid_thw`` (I, 3).

        Raises:
            ConfigError: For an option that is not available.
            DataError, MediaError: If a picture cannot be read or resized.
        """
        CallOptions.read({"return_tensors": return_tensors, **options})
        settings = self.processor.image_settings
        patches_PE, sizes = [], []
        for number, picture in enumerate(images if isinstance(images, list | tuple) else [images]):
            rgb = picture_to_rgb(picture, f"images[{number}]")
            sizes.append(settings.size(*rgb.shape[:2]))
            patches_PE.append(settings.patches(rgb, sizes[-1]))
        return BatchFeature(image_tensors(settings, patches_PE, sizes))

    def to_dict(self) -> dict[str, Any]:
        """The settings."""
        settings = dataclasses.asdict(self.processor.image_settings)
        return settings | {"image_processor_type": type(self).__name__}

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: Any, push_to_hub: bool = False, **options: Any
    ) -> Any:
        """Save the whole processor: ``pipe.save_pretrained`` saves no processor, only its parts."""
        return self.processor.save_pretrained(save_directory, push_to_hub=push_to_hub, **options)
