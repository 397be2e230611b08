"""Samples that no sequence can hold → several that one can, cut between the user's turns. Pure.

A conversation about pictures may be cut where the user speaks again, if all its pictures stand before the
first turn: every piece then sees all that its answers are about. The system prompt and the pictures are
repeated in each piece, turns stay whole and in order, and every answer is trained exactly once. What an
earlier turn said is lost to a later piece.

Not cut are conversations with a picture further back, and live streams, whose frames lie inside the
assistant's turn: their later words depend on frames and words that a piece would not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from casa_core.types import Image, Part, Sample


def pieces(sample: Sample, fits: Callable[[Sample], bool]) -> list[Sample] | None:
    """The fewest pieces that each fit, cut between turns.

    Args:
        sample: One that does not fit; its pieces keep its ``sample_id``.
        fits: Whether a sample fits into a sequence. With fewer turns, what fits must fit still.

    Returns:
        The pieces in order, each filled before the next is begun, which no other cut into runs of turns
        can beat; ``None`` where the sample must not be cut, or one of its turns alone does not fit.
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
    """What stands before the first turn's words: the system prompt and the pictures."""
    for number, part in enumerate(parts):
        opens = part.role == "user" if isinstance(part, Image) else part.role == "system"
        if not opens:
            return tuple(parts[:number])
    return tuple(parts)


def _turns(parts: Sequence[Part]) -> list[list[Part]]:
    """Runs of parts that each begin where the user speaks (the first may begin with the assistant)."""
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
