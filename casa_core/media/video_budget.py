"""Videos over an image budget: smaller frames, then fewer. Packing, evaluation and serving share this rule.

At 448 x 448 a frame of Qwen2.5-VL's tower has (448 / 28)² = 256 tokens, so the paper's 46,080 tokens hold 180
frames: 90 s at 2 fps. Three minutes are 360 frames, and 46,080 / 360 is 128 tokens a frame. (Not by pairing
frames: B.2 rules that out.) So all frames are kept, each resized to the area of 128 tokens, 316 x 316: that
is ``smaller``. A frame never falls below the area of ``min_frame_side``, by default half of the side of
``max_frame_side``, which is 64 tokens at 224 x 224, Qwen2.5-VL's own least for a frame of a video (128 tokens
for two); so 46,080 tokens hold 720 frames, six minutes. Of a longer video evenly spread frames are kept.

A live stream is no whole video: its frames lie in the assistant's turn, each with the words about it. None is
dropped or made smaller for a budget; packing cuts the stream into windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from casa_core.media.images import ImageSettings
from casa_core.types import Image, ImageSize, Sample

HeightWidth = tuple[int, int]


@dataclass(frozen=True, slots=True)
class VideoFit:
    """How a video is fitted to a budget.

    Attributes:
        kept: Numbers of the frames that are kept, ascending.
        most_tokens: The most tokens of a frame; ``None`` where ``max_frame_side`` alone bounds it.
    """

    kept: tuple[int, ...]
    most_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class FittedSample:
    """A sample whose videos are fitted to a budget.

    Attributes:
        sample: Without the frames that were left out.
        kept: Numbers of its images among those it had, ascending.
        sizes: Size of each of its images, in order.
        most_tokens: As in :class:`VideoFit`, for all frames of its videos.
    """

    sample: Sample
    kept: tuple[int, ...]
    sizes: tuple[ImageSize, ...]
    most_tokens: int | None = None


def fit_video(settings: ImageSettings, frames: Sequence[HeightWidth], budget: int | None) -> VideoFit:
    """Fit the frames of a video to a budget, by ``settings.video_over_budget``.

    ``smaller`` bounds every frame to an equal share of the budget, but not below ``min_frame_tokens``; where
    this is not enough, and by ``fewer`` at once, frames are left out: as many as fit are kept, evenly spread
    from the first on. ``refuse`` changes nothing, nor does any rule where not even one frame fits: the caller
    refuses the sample.

    Args:
        frames: (height, width) of each as decoded, in order.
        budget: Image tokens that they may have together; ``None``: no bound.

    Raises:
        MediaError: As :meth:`casa_core.media.images.ImageSettings.size`.
    """
    whole = VideoFit(tuple(range(len(frames))))
    natives = {native: frames.count(native) for native in set(frames)}

    def tokens(most: int | None) -> dict[HeightWidth, int]:
        return {own: settings.size(*own, frame=True, most_tokens=most).tokens for own in natives}

    def fits(found: dict[HeightWidth, int]) -> bool:
        return budget is None or sum(found[own] * count for own, count in natives.items()) <= budget

    found, most = tokens(None), None
    if budget is None or settings.video_over_budget == "refuse" or fits(found):
        return whole
    if settings.video_over_budget == "smaller":
        most = max(budget // len(frames), settings.min_frame_tokens)
        found = tokens(most)
        if fits(found):
            return replace(whole, most_tokens=most)
    count = budget // max(found.values())
    if count < 1:
        return whole
    return VideoFit(tuple(number * len(frames) // count for number in range(count)), most)


def fit_sample(
    settings: ImageSettings, sample: Sample, natives: Sequence[HeightWidth], budget: int | None
) -> FittedSample:
    """Fit a sample's whole videos to what its other images leave of a budget.

    Args:
        natives: (height, width) of each of its images as decoded, in order.
        budget: Image tokens of the sample; ``None``: no bound.

    Raises:
        MediaError: As :meth:`casa_core.media.images.ImageSettings.size`.
    """
    images = [part for part in sample.parts if isinstance(part, Image)]
    sizes = [
        settings.size(*native, frame=image.timestamp is not None)
        for image, native in zip(images, natives, strict=True)
    ]
    moving = [number for number, image in enumerate(images) if of_whole_video(image)]
    if budget is None or not moving:
        return FittedSample(sample, tuple(range(len(images))), tuple(sizes))
    others = sum(size.tokens for size in sizes) - sum(sizes[number].tokens for number in moving)
    fit = fit_video(settings, [natives[number] for number in moving], budget - others)
    left_out = set(moving) - {moving[number] for number in fit.kept}
    for number in moving:
        sizes[number] = settings.size(*natives[number], frame=True, most_tokens=fit.most_tokens)
    kept = tuple(number for number in range(len(images)) if number not in left_out)
    count = iter(range(len(images)))
    parts = tuple(part for part in sample.parts if not isinstance(part, Image) or next(count) not in left_out)
    return FittedSample(
        replace(sample, parts=parts), kept, tuple(sizes[number] for number in kept), fit.most_tokens
    )


def of_whole_video(image: Image) -> bool:
    """Whether an image is a frame of a video that is seen as a whole, and not live."""
    return image.timestamp is not None and image.role != "assistant"
