"""Numbers, byte counts and durations as short text for people; durations and names as people write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}


def number(value: float) -> str:
    """A value for people: ``1234567`` → ``1.23 M``, ``0.00153`` → ``0.0015``, ``12.0`` → ``12``."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g} {unit}"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1 else f"{value:.2g}"


def byte_size(count: float) -> str:
    """``1536`` → ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """``0.4`` → ``0.4 s``, ``75`` → ``1 min 15 s``, ``7300`` → ``2 h 2 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``30m``, ``6h``, ``1h 30m`` or ``2d``.

    Raises:
        ValueError: For any other text, and for no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?) ?(d|h|min|m|s)", text)
    seconds = sum(float(count) * _SECONDS[unit] for count, unit in parts)
    if re.sub(r"\s", "", text) != "".join(map("".join, parts)) or not seconds:
        raise ValueError(f"{text!r} is no duration; expected for example 90s, 30m, 6h or 1h 30m")
    return seconds


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """An error's remedy: the known name that a wrong one is closest to, or ``otherwise`` if none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else otherwise
