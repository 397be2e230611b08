"""Pictures of any Pillow mode → RGB in sRGB on white, strip by strip, so that few copies are in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from casa_core.media.upright import UPRIGHT, Turn

Rgb = NDArray[np.uint8]
_STRIP_PIXELS = 1 << 19
_ALPHA = frozenset(("RGBA", "LA", "PA", "La", "RGBa"))
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
# A profile's colour space → the Pillow mode it applies to, and the modes that are converted to that.
_SPACES = {
    "RGB": ("RGB", frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "L", "LA", "La"))),
    "GRAY": ("L", frozenset(("L", "LA", "La"))),
    "CMYK": ("CMYK", frozenset(("CMYK",))),
    "Lab": ("LAB", frozenset(("LAB",))),
}
_LIKE_SRGB = 2
"""A profile that moves no colour by more than this is sRGB, and pixels stay as they are."""

Profile = tuple[str, ImageCms.ImageCmsTransform]


def to_rgb(image: Image.Image, turn: Turn = UPRIGHT) -> Rgb:
    """Pixels of a loaded picture.

    Transparency lies on white; an embedded colour profile is followed to sRGB (a broken one, or one for
    another kind of colours, is left aside); integer grey counts as 16-bit and keeps its upper 8 bits, but
    that of a 32-bit TIFF as 8-bit if it stays within; floating-point grey runs from 0 to 1 if it stays
    within, otherwise to 255.

    Args:
        image: A picture of any mode.
        turn: How it becomes upright.

    Returns:
        uint8 of (height, width, 3), upright.
    """
    pixels = np.empty((*turn.size(image.height, image.width), 3), np.uint8)
    stored = turn.stored(pixels)
    profile = colour_profile(image)
    scale = _grey_scale(image)
    top = 0
    for strip in _strips(image):
        stored[top : top + strip.height] = _strip_rgb(strip, profile, scale)
        top += strip.height
    return pixels


def colour_profile(image: Image.Image) -> Profile | None:
    """The transform to sRGB that a picture's pixels need, and the mode it reads; ``None`` for none."""
    if image.mode == "LAB":
        return _transform(image.info.get("icc_profile") or b"", "LAB") or _transform(b"", "LAB")
    profile = image.info.get("icc_profile")
    return _transform(profile, image.mode) if isinstance(profile, bytes) and profile else None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Profile | None:
    try:
        known: Any = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        )
        space = known.profile.xcolor_space.strip() if profile else "Lab"
        reads, modes = _SPACES.get(space, ("", frozenset()))
        if mode not in modes:
            return None
        transform = ImageCms.buildTransform(known, ImageCms.createProfile("sRGB"), reads, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if reads in ("RGB", "L"):
        probe = _probe(reads)
        shown = np.asarray(ImageCms.applyTransform(probe, transform), np.int16)
        if np.abs(shown - np.asarray(probe.convert("RGB"), np.int16)).max() <= _LIKE_SRGB:
            return None
    return reads, transform


def _probe(mode: str) -> Image.Image:
    """A picture of colours from all of the space."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    return Image.fromarray(cube if mode == "RGB" else cube[..., 0])


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // max(image.width, 1))
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _strip_rgb(strip: Image.Image, profile: Profile | None, scale: float) -> Any:
    if strip.mode.startswith("I") or strip.mode == "F":
        grey = np.asarray(strip, dtype=np.float64)
        levels = np.floor(grey * scale) if strip.mode != "F" else grey * scale
        levels[grey == strip.info.get("transparency")] = 255  # on white
        return np.clip(np.nan_to_num(levels), 0, 255).astype(np.uint8)[..., np.newaxis]
    if "transparency" in strip.info or strip.mode in _ALPHA:
        layer = strip.convert(_STRAIGHT.get(strip.mode, strip.mode)).convert("RGBA")
        if profile is not None:
            coloured = _shown(layer.convert("RGB"), profile)
            layer = Image.merge("RGBA", (*coloured.split(), layer.getchannel("A")))
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(_shown(strip, profile) if profile is not None else strip.convert("RGB"))


def _shown(strip: Image.Image, profile: Profile) -> Image.Image:
    reads, transform = profile
    if strip.mode != reads:
        strip = strip.getchannel("R") if reads == "L" else strip.convert(reads)
    shown = ImageCms.applyTransform(strip, transform)
    assert shown is not None, "not in place"
    return shown


def _grey_scale(image: Image.Image) -> float:
    """Factor from deep grey to 0 … 255; 1 for other modes."""
    if image.mode == "F":
        return 255.0 if _most(image) <= 1.0 else 1.0
    if image.mode == "I" and image.format == "TIFF" and _most(image) <= 255:
        return 1.0
    return 1 / 256 if image.mode.startswith("I") else 1.0


def _most(image: Image.Image) -> float:
    values = map(np.asarray, _strips(image))  # NaN and infinity are gaps, as in depth maps, and say nothing
    return max(float(strip.max(initial=0, where=np.isfinite(strip))) for strip in values)
