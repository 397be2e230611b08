"""Pictures embedded in a page as data URIs."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from casa_core.media.data_uri import to_data_uri
from pipelines.html.tags import Html, tag

JPEG_QUALITY = 80


def picture(
    pixels: np.ndarray,
    *,
    alt: str,
    side: int | None = None,
    kind: Literal["png", "jpeg"] = "png",
    **attributes: Any,
) -> Html:
    """An ``<img>`` of an array; see `data_uri`.

    Args:
        pixels, side, kind: As for `data_uri`.
        alt: Alternative text.
        attributes: Further attributes of the element.
    """
    return tag("img", src=data_uri(pixels, side=side, kind=kind), alt=alt, **attributes)


def data_uri(pixels: np.ndarray, *, side: int | None = None, kind: Literal["png", "jpeg"] = "png") -> str:
    """A ``data:`` URI of a uint8 array [height, width, channels], RGB or (PNG only) RGBA.

    Args:
        pixels: The picture.
        side: Longest side at most, pixels; a larger picture is shrunk.
        kind: ``png`` is lossless, ``jpeg`` several times smaller for photographs.
    """
    image = Image.fromarray(pixels)
    if side is not None:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, quality=JPEG_QUALITY)  # PNG has no quality and ignores it
    return to_data_uri(buffer.getvalue(), f"image/{kind}")
