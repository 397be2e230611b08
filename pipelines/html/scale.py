"""Axis scales, and round numbers to write beside an axis."""

from __future__ import annotations

import math
from collections.abc import Callable

Scale = Callable[[float], float]


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map ``low…high`` to ``start…end``; a domain without width maps to ``start``."""
    width = high - low
    return lambda value: start + (end - start) * ((value - low) / width if width else 0.0)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Map ``low…high`` (positive) to ``start…end`` by orders of magnitude; below ``low`` is ``start``."""
    inner = linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(max(value, low)))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About ``about`` multiples of 1, 2 or 5 times a power of ten, within ``low…high``."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within ``low…high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
