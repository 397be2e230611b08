"""Give freed memory back to the system, which glibc does not do by itself."""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt's settings (malloc.h)."""


def trim_heap() -> None:
    """Give back what is free in the heap; nothing where the C library is not glibc.

    Pillow's and most decoders' buffers are blocks of up to 16 MB. Once one of that size has been freed, glibc
    takes further ones from its arenas, one for each of several threads, and returns only what happens to lie
    at their ends. It takes tens of milliseconds, which other threads may wait for: call it after work that
    has needed hundreds of megabytes.

    From the first call on, blocks of 8 MB and more are mapped one by one and go back when they are freed: a
    trim leaves the end of every arena but the main one, up to 32 MB each (glibc 2.36, ``mtrim``).
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library with its thresholds set: both, since setting one ends its own adjusting of the other."""
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim  # noqa: B018 - whether it is there
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return None
    libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)
    return libc
