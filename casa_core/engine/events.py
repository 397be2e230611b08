"""What comes out of a step of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from casa_core.engine.requests import CaptionEvent, GenerationDelta, GenerationResult
from casa_core.errors import CasaError


@dataclass(frozen=True, slots=True)
class FrameDropped:
    """A frame that newer ones replaced before it was read; ``timestamp`` is its time in the stream."""

    timestamp: float


@dataclass(frozen=True, slots=True)
class FrameRefused:
    """A frame that cannot be decoded; the stream goes on without it."""

    timestamp: float
    error: Exception


@dataclass(frozen=True, slots=True)
class StreamMoved:
    """A stream that goes on in another engine.

    Attributes:
        exact: Whether it goes on with the same tokens; otherwise its text and latest frame were read again.
        frames_lost: Times of the frames whose words were lost with the engine before.
    """

    exact: bool
    frames_lost: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of an answer or a stream by an error; its slot is free."""

    error: Exception


Outcome: TypeAlias = (
    GenerationDelta | GenerationResult | CaptionEvent | FrameDropped | FrameRefused | StreamMoved | Failed
)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to the answer or stream ``sequence`` (the number of ``submit`` or ``open_stream``).

    A :class:`GenerationResult` or :class:`Failed` is the last event of an answer.
    """

    sequence: int
    outcome: Outcome


class Overloaded(CasaError):
    """The engine takes no more work for now.

    Attributes:
        retry_after_s: Seconds after which to try again.
    """

    def __init__(self, what: str, why: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, why, f"Try again in {retry_after_s:.0f} seconds.")
        self.args = what, why, retry_after_s
