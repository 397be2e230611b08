"""Splits samples over a budget into pieces that fit: conversations between turns, streams between frames.

A conversation about pictures or a video may be split where a user's turn begins, if all its pictures precede
the first turn: every piece then has all that its answers are about. The system prompt and the pictures are
repeated in each piece, turns stay whole and in order, and every answer is trained exactly once. A later piece
lacks the text of earlier turns. Conversations with a later picture are not split.

A live stream, whose frames lie in the assistant's turn, is cut into consecutive windows, each as long as both
budgets allow. A frame stays with its words, at its own time: no word is split, lost or doubled. The prompt is
repeated in each window. Where it holds the commentary before the clip (``previous``), a later window has in
its place what was said last before the window, at most as much of it, from a word's start on: what a model
that follows the stream has in its context. Otherwise a later window lacks what was said before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from casa_core.types import Image, Part, Sample, Text


def pieces(sample: Sample, fits: Callable[[Sample], bool]) -> list[Sample] | None:
    """The fewest pieces that each fit, cut between turns.

    Args:
        sample: One that does not fit; its pieces keep its ``sample_id``.
        fits: Whether a sample fits into a sequence; what fits must still fit with fewer turns.

    Returns:
        The pieces in order, each filled before the next begins, which is the fewest possible; ``None``
        where the sample must not be split, or one of its turns alone does not fit.
    """
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


def windows(
    sample: Sample, fits: Callable[[Sample], bool], most_frames: int, previous: str = ""
) -> list[Sample] | None:
    """The fewest windows of a live stream that each fit, cut between frames.

    Args:
        sample: One that does not fit; its windows keep its ``sample_id``.
        fits: Whether a sample fits into a sequence; what fits must still fit with fewer frames.
        most_frames: More frames than this never fit.
        previous: Commentary before the clip, as the prompt holds it after ``Previous: ``; empty where it
            does not.

    Returns:
        The windows in order, each filled before the next begins; ``None`` where the prompt and one frame
        with its words do not fit, or the stream is no prompt followed by frames and words alone.
    """
    prompt, frames = _stream(sample.parts)
    if any(part.role != "assistant" for frame in frames for part in frame) or any(
        isinstance(part, Text) and part.trained for part in prompt
    ):
        return None

    def window(own: tuple[Part, ...], start: int, stop: int) -> Sample:
        return replace(sample, parts=(*own, *(part for frame in frames[start:stop] for part in frame)))

    found, start, said = [], 0, previous
    while start < len(frames):
        own = _with_previous(prompt, previous, said)
        end = min(len(frames), start + most_frames)
        stop = _last_that_fits(start, end, lambda stop, start=start, own=own: fits(window(own, start, stop)))
        if stop == start:
            return None
        found.append(window(own, start, stop))
        said = _tail(f"{said} {_words(frames[start:stop])}", len(previous))
        start = stop
    return found


def _stream(parts: Sequence[Part]) -> tuple[tuple[Part, ...], list[list[Part]]]:
    """The parts before the first live frame; then each frame, or run of frames, with its words."""
    prompt: list[Part] = []
    frames: list[list[Part]] = []
    for part in parts:
        live = isinstance(part, Image) and part.role == "assistant"
        if live and not (frames and isinstance(frames[-1][-1], Image)):
            frames.append([])
        (frames[-1] if frames else prompt).append(part)
    return tuple(prompt), frames


def _with_previous(prompt: tuple[Part, ...], previous: str, said: str) -> tuple[Part, ...]:
    """The prompt with what was said last in place of the commentary before the clip."""
    if not previous:
        return prompt
    old, new = (f"Previous: {text}" for text in (previous, said))
    return tuple(
        replace(part, text=part.text.replace(old, new, 1)) if isinstance(part, Text) else part
        for part in prompt
    )


def _words(frames: Sequence[Sequence[Part]]) -> str:
    texts = (part.text for frame in frames for part in frame if isinstance(part, Text))
    return " ".join(text for text in texts if text)


def _tail(text: str, most: int) -> str:
    """The last ``most`` characters at most, from a word's start on."""
    text = text.strip()
    if len(text) <= most:
        return text
    return text[len(text) - most - 1 :].partition(" ")[2]


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
