"""Pixels → patches: sizes, resizing, normalisation, for either vision tower and for every caller.

Sizes follow Qwen2.5-VL's own rule (``smart_resize``: sides rounded to whole image tokens, a larger image
shrunk and rounded down, a smaller one enlarged and rounded up), with one deliberate difference: the result
never exceeds ``max_side``² pixels. Qwen's does for elongated images at a small maximum, where a side cannot
shrink below one token, and then the budgets that packing counts on would not hold. Here the longer side gives
way. Everything else is kept, its floating point too: of the square pictures above the maximum, one in eight
comes out a row and a column short (961 tokens for 1024 at 896²), as it does in transformers.

Shape suffixes: P patches, E values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.types import ImageSize

if TYPE_CHECKING:  # and late: planning and reports only count tokens, and need not wait for torch
    import torch

    from casa_core.config import VisionConfig

VideoOverBudget = Literal["smaller", "fewer", "refuse"]
MAX_ASPECT_RATIO = 200  # beyond it a resized side would vanish; the same bound as Qwen2.5-VL's
RESAMPLING = {name.lower(): filter for name, filter in PILImage.Resampling.__members__.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """How pictures become patches.

    Attributes:
        patch_size: Side of a patch, pixels.
        merge_size: Side of the square of patches merged into one image token.
        temporal_patch_size: Frames a patch spans; each picture is repeated to fill it (2 for Qwen, which
            pairs frames of a video; the paper's B.2 does not).
        max_side: R_max: pictures keep their resolution up to ``max_side``² pixels and their aspect always.
        max_frame_side: The same for frames of a video; ``None``: as pictures. 896 and 448 in the paper.
        max_video_tokens: The most image tokens of a whole video, with the other images of its conversation;
            ``None``: no bound. Its frames are fitted to it by :mod:`casa_core.media.video_budget`.
        min_frame_side: Frames are not made smaller than ``min_frame_side``² pixels to fit it; ``None``: half
            of the side of the largest frames.
        video_over_budget: What becomes of a video over it: ``smaller`` frames, ``fewer``, or ``refuse``.
        min_side: Smaller pictures are enlarged to ``min_side``² pixels; ``None``: to one image token.
        image_mean, image_std: Mean and deviation of each colour channel, with colours from 0 to 1.
        resample: Pillow's filter for resizing.
    """

    patch_size: int = 8
    merge_size: int = 2
    temporal_patch_size: int = 1
    max_side: int = 64
    max_frame_side: int | None = None
    min_side: int | None = None
    max_video_tokens: int | None = None
    min_frame_side: int | None = None
    video_over_budget: VideoOverBudget = "smaller"
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name} = {getattr(self, name)!r}` is too small.",
                    "It counts from 1.",
                    f"Set {name} as the vision tower has it.",
                )
        smallest = max(self.factor, self.min_side or 0)
        for name in ("max_side", "max_frame_side", "min_frame_side"):
            side = getattr(self, name)
            if side is not None and side < smallest:
                raise ConfigError(
                    f"`{name} = {side}` leaves no room for an image.",
                    f"The smallest image is {smallest} by {smallest} pixels.",
                    f"Set {name} to {smallest} or more.",
                )
        if self.video_over_budget not in get_args(VideoOverBudget):
            raise ConfigError(
                f"`video_over_budget = {self.video_over_budget!r}` is not available.",
                f"Expected one of {', '.join(get_args(VideoOverBudget))}.",
                "Set video_over_budget to one of them.",
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3 or (name == "image_std" and min(values) <= 0):
                raise ConfigError(
                    f"`{name} = {list(values)}` does not describe the three colour channels.",
                    "It takes three numbers, those of image_std above 0.",
                    f"Set {name} to one number for each of red, green and blue.",
                )
        if self.resample not in RESAMPLING:
            raise ConfigError(
                f"`resample = {self.resample!r}` is no filter of Pillow's.",
                f"Expected one of {', '.join(sorted(RESAMPLING))}.",
                "Set resample to one of them.",
            )

    @classmethod
    def for_tower(cls, vision: VisionConfig, **changes: Any) -> ImageSettings:
        """The settings that a tower was trained with; Qwen2.5-VL's with the paper's resolutions.

        Args:
            vision: The tower's configuration.
            changes: Settings that differ from that, ``max_side`` above all.
        """
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
        from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        settings: dict[str, Any] = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        if isinstance(vision, Qwen2_5_VLVisionConfig):
            settings |= {
                "temporal_patch_size": vision.temporal_patch_size,
                "max_side": 896,
                "max_frame_side": 448,
                "min_side": 4 * int(settings["patch_size"]),
                "image_mean": tuple(OPENAI_CLIP_MEAN),
                "image_std": tuple(OPENAI_CLIP_STD),
            }
        return cls(**(settings | changes))

    @property
    def factor(self) -> int:
        """Side of one image token, pixels."""
        return self.patch_size * self.merge_size

    @property
    def frame_side(self) -> int:
        """R_max of frames of a video, pixels."""
        return self.max_frame_side or self.max_side

    @property
    def min_frame_tokens(self) -> int:
        """Tokens that a frame of a video may always have, whatever its video's budget."""
        side = max(self.min_frame_side or self.frame_side // 2, self.factor, self.min_side or 0)
        return max(1, side // self.factor) ** 2

    def size(
        self, height: int, width: int, *, frame: bool = False, most_tokens: int | None = None
    ) -> ImageSize:
        """The size a picture is resized to.

        Args:
            height, width: As decoded, pixels.
            frame: It is a frame of a video.
            most_tokens: Tokens that it may have at most, beside what the settings allow.

        Raises:
            MediaError: ``empty_image`` or ``extreme_aspect_ratio``.
        """
        if height < 1 or width < 1:
            raise MediaError("empty_image", f"An image of {width} by {height} pixels has nothing to see.")
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise MediaError(
                "extreme_aspect_ratio",
                f"An image of {width} by {height} pixels is too elongated.",
                f"Its longer side is more than {MAX_ASPECT_RATIO} times the shorter.",
                "Crop it.",
            )
        factor, unit = self.factor, self.factor**2
        most = (self.frame_side if frame else self.max_side) ** 2
        if most_tokens is not None:
            most = min(most, most_tokens * unit)
        least = (self.min_side or factor) ** 2
        rows, columns = round(height / factor), round(width / factor)
        if rows * columns * unit > most:
            shrink = math.sqrt(height * width / most)
            rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
        elif rows * columns * unit < least:
            enlarge = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(side * enlarge / factor) for side in (height, width))
        while rows * columns * unit > most:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        return ImageSize(height, width, rows * factor, columns * factor, rows * columns)

    def grid(self, size: ImageSize) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return size.height // self.patch_size, size.width // self.patch_size

    def patches(self, rgb: NDArray[np.uint8], size: ImageSize) -> torch.Tensor:
        """Resize, normalise and cut into patches.

        Args:
            rgb: (height, width, 3).
            size: From :meth:`size` of the same picture.

        Returns:
            (P, E) float32, E = 3 · temporal_patch_size · patch_size², in merge-group order: the patches of
            one image token are neighbours.

        Raises:
            DataError: If the pixels are not an RGB array, or the size belongs to another picture, or is
                larger than any that these settings give.
        """
        import torch

        check_pixels(rgb)
        self._check_size(rgb, size)
        if rgb.shape[:2] != (size.height, size.width):
            resized = PILImage.fromarray(rgb).resize((size.width, size.height), RESAMPLING[self.resample])
            rgb = np.asarray(resized)
        rows, cols = self.grid(size)
        merge, patch = self.merge_size, self.patch_size
        tiles = rgb.reshape(rows // merge, merge, patch, cols // merge, merge, patch, 3)
        ordered = np.ascontiguousarray(tiles.transpose(0, 3, 1, 4, 6, 2, 5))
        values = torch.from_numpy(ordered).float().view(rows * cols, 3, 1, patch * patch)
        for channel, (mean, std) in enumerate(zip(self.image_mean, self.image_std, strict=True)):
            values[:, channel].sub_(255 * mean).div_(255 * std)
        return values.expand(-1, -1, self.temporal_patch_size, -1).reshape(rows * cols, -1)

    def _check_size(self, rgb: NDArray[np.uint8], size: ImageSize) -> None:
        largest = max(self.max_side, self.max_frame_side or 0)
        if size.height * size.width > largest**2:
            raise DataError(
                f"An image of {size.width} by {size.height} pixels is larger than max_side = {largest}.",
                f"An image has at most {largest} times {largest} pixels, whatever its shape.",
                "Take the size from image_size of this processor, or raise its max_side.",
            )
        if rgb.shape[:2] != (size.original_height, size.original_width):
            raise DataError(
                f"The size of a picture of {size.original_width} by {size.original_height} pixels was given "
                f"for one of {rgb.shape[1]} by {rgb.shape[0]}.",
                "Each picture has its own.",
                "Take it from image_size(*rgb.shape[:2]).",
            )
        if size.height < 1 or size.width < 1 or size.height % self.factor or size.width % self.factor:
            raise DataError(
                f"{size.width} by {size.height} pixels cannot be cut into image tokens.",
                f"One is {self.factor} by {self.factor} pixels.",
                "Take the size from image_size of this processor.",
            )


def check_pixels(rgb: Any, name: str = "The picture") -> None:
    """Refuse what is not decoded RGB.

    Raises:
        DataError: Naming what it is instead.
    """
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        found = (
            f"an array of {rgb.dtype} of shape {rgb.shape}"
            if isinstance(rgb, np.ndarray)
            else f"of type {type(rgb).__name__}"
        )
        raise DataError(
            f"{name} is {found}.",
            "Pixels come as uint8 of shape (height, width, 3), red first, 0 to 255.",
            "Convert it, or pass the encoded file's bytes or a Pillow image.",
        )
