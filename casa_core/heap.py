"""Give freed memory back to the system, which glibc does not do by itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def trim_heap() -> None:
    """Give back what is free in the heap; nothing where the C library is not glibc.

    Pillow's and most decoders' buffers are blocks of up to 16 MB. Once one of that size has been freed, glibc
    takes further ones from its arenas, one for each of several threads, and returns only what happens to lie
    at their ends. It takes tens of milliseconds, which other threads may wait for: call it after work that
    has needed hundreds of megabytes.
    """
    if _trim is not None:
        _trim(0)


def _glibc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return None


_trim = _glibc_trim()
