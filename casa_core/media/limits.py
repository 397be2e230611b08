"""How large a picture may be, for training and serving alike."""

from __future__ import annotations

MAX_PIXELS = 8192 * 8192
"""Pixels of a picture, by default: 67 million.

Memory is what it bounds: while a picture is decoded, a pixel takes up to 4 bytes in Pillow and 3 in the array
that is returned, so 0.47 GB at this size, and up to 12 more in the decoders of progressive JPEG, WebP, AVIF
and JPEG 2000. It is more than any model looks at, and more than all but special cameras give.
"""
PILLOW_PIXELS = 178_956_970
"""Pillow refuses larger pictures, whatever is asked for."""
