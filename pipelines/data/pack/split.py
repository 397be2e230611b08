"""Splits samples that exceed the text budget into pieces that fit, between the user's turns.

A conversation about pictures may be split where a user's turn begins, if all its pictures precede the first
turn: every piece then has all that its answers are about. The system prompt and the pictures are repeated in
each piece, turns stay whole and in order, and every answer is trained exactly once. A later piece lacks the
text of earlier turns.

Conversations with a later picture are not split, nor are live streams, whose frames are inside the
assistant's turn: their later text depends on frames and text that a piece would not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from casa_core.types import Image, Part, Sample


def pieces(sample: Sample, fits: Callable[[Sample], bool]) -> list[Sample] | None:
    """The fewest pieces that each fit, cut between turns.

    Args:
        sample: One that does not fit; its pieces keep its ``sample_id``.
        fits: Whether a sample fits into a sequence; what fits must still fit with fewer turns.

    Returns:
        The pieces in order, each filled before the next begins, which is the fewest possible; ``None``
        where the sample must not be split, or one of its turns alone does not fit.
    """
    if any(isinstance(part, Image) and part.timestamp is not None for part in sample.parts):
        return None
    repeated = _repeated(sample.parts)
    rest = sample.parts[len(repeated) :]
    if any(isinstance(part, Image) for part in rest):
        return None
    turns = _turns(rest)

    def piece(start: int, stop: int) -> Sample:
        return replace(sample, parts=(*repeated, *(part for turn in turns[start:stop] for part in turn)))

    found, start = [], 0
    while start < len(turns):
        stop = _last_that_fits(start, len(turns), lambda stop, start=start: fits(piece(start, stop)))
        if stop == start:
            return None
        found.append(piece(start, stop))
        start = stop
    return found or None


def _repeated(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts before the first turn's text: the system prompt and the pictures."""
    for number, part in enumerate(parts):
        opens = part.role == "user" if isinstance(part, Image) else part.role == "system"
        if not opens:
            return tuple(parts[:number])
    return tuple(parts)


def _turns(parts: Sequence[Part]) -> list[list[Part]]:
    """Runs of parts that each begin with a user's part (the first may begin with the assistant's)."""
    turns: list[list[Part]] = []
    speaker = None
    for part in parts:
        if not turns or (part.role == "user" and speaker != "user"):
            turns.append([])
        turns[-1].append(part)
        speaker = part.role
    return turns


def _last_that_fits(start: int, end: int, fits: Callable[[int], bool]) -> int:
    """The largest ``stop`` in ``start … end`` for which turns ``start … stop`` fit, by bisection."""
    low, high = start, end
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
