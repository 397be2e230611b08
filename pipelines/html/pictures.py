"""Pictures from clean artifacts, small enough to be embedded in the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pipelines.html.tags import Html, tag


def picture(pixels: np.ndarray, *, alt: str, side: int) -> Html:
    """An ``<img>`` of an RGB array ``[height, width, 3]`` whose longest side is at most ``side`` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return tag("img", src=f"data:image/png;base64,{data}", alt=alt, loading="lazy")
