"""What an endpoint keeps of a live stream, so that it can go on elsewhere: its text and latest frame, the
frames without words and the questions without answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from casa_core.engine.events import FrameDropped, FrameRefused, Outcome
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.media.decode import encode_png

NOTHING_READ = -1.0
"""Time of the latest frame in the state of a stream that has read none."""


@dataclass(slots=True, eq=False)
class Asked:
    """A further question without an answer; ``taken`` once a replica has it."""

    query: str
    taken: bool = False


class StreamRecord:
    """The frames, questions and text of one stream.

    Attributes:
        due: Frames without words, by their time in the stream.
        unsent: Times of those that its replica has not been sent.
        asked: Questions without answers.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.due: dict[float, FrameImage] = {}
        self.unsent: deque[float] = deque()
        self.asked: deque[Asked] = deque()
        self._settings = settings
        self._latest: tuple[float, FrameImage] | None = None  # with words
        self._picture: FrameImage | None = None  # of the transcript
        self._transcript: Transcript | None = None

    def push(self, image: FrameImage, timestamp: float) -> None:
        """Take a frame."""
        self.due[timestamp] = image
        self.unsent.append(timestamp)

    def take_unsent(self) -> list[tuple[float, FrameImage]]:
        """The frames that are to be sent now."""
        frames = [(timestamp, self.due[timestamp]) for timestamp in self.unsent]
        self.unsent.clear()
        return frames

    def note(self, outcome: Outcome) -> None:
        """Settle what an outcome is about."""
        match outcome:
            case CaptionEvent(prompt=str()):
                self.asked.popleft()
            case CaptionEvent(timestamp=timestamp):
                self._latest = timestamp, self.due.pop(timestamp)
            case FrameDropped(timestamp) | FrameRefused(timestamp):
                self.due.pop(timestamp)

    def keep(self, transcript: Transcript) -> None:
        """Keep what a crash leaves of it. The frame is the endpoint's own copy."""
        at, image = self._latest or (-1.0, None)
        self._picture = image if at == transcript.timestamp else self.due.get(transcript.timestamp)
        self._transcript = transcript

    def last_known(self) -> Transcript | None:
        """What another replica goes on from after a crash."""
        if self._transcript is None:
            return None
        return replace(self._transcript, frame=None if self._picture is None else _encoded(self._picture))

    def to_send_again(self, read: Transcript | None) -> tuple[tuple[float, ...], list[Asked]]:
        """Have the frames sent that a new replica has not read.

        Args:
            read: What the replica begins with; ``None`` where that is nothing.

        Returns:
            The times of frames whose words are lost, and the questions that are to be asked again.
        """
        until, words, prompts = (
            (-1.0, False, 0) if read is None else (read.timestamp, bool(read.words), len(read.prompts))
        )
        in_progress = until if read is not None and words and not read.answering else None
        lost = tuple(one for one in self.due if one <= until and one != in_progress)
        for timestamp in lost:
            del self.due[timestamp]
        self.unsent = deque(one for one in self.due if one > until)
        return lost, [asked for asked in self.asked if asked.taken][prompts:]

    def state(self) -> Transcript:
        """All of it, for another endpoint."""
        own = self._settings
        known = self.last_known() or Transcript(
            query=own.query,
            max_tokens_per_frame=own.max_tokens_per_frame,
            ids=(),
            pending=(),
            frame=None,
            frame_at=0,
            timestamp=NOTHING_READ,
        )
        waiting = tuple((timestamp, _encoded(image)) for timestamp, image in self.due.items())
        return replace(known, waiting=waiting, prompts=tuple(asked.query for asked in self.asked))

    def complete(self, saved: SavedSession) -> SavedSession:
        """A snapshot that a replica has given back, with what it did not have."""
        state = self.state()
        own = replace(saved.transcript, waiting=state.waiting, prompts=state.prompts)
        return replace(saved, transcript=own)

    def take_over(self, begin: SavedSession | Transcript) -> SavedSession | Transcript | None:
        """Take what another endpoint's record came to; what of it a replica begins with."""
        left = begin.transcript if isinstance(begin, SavedSession) else begin
        self.due = {timestamp: image for timestamp, image in left.waiting if image is not None}
        self.asked = deque(Asked(query, taken=True) for query in left.prompts)
        if left.timestamp == NOTHING_READ:
            return None
        self._picture, self._transcript = left.frame, replace(left, waiting=())
        self._latest = None if left.frame is None else (left.timestamp, left.frame)
        if isinstance(begin, SavedSession):
            return replace(begin, transcript=self._transcript)
        return self._transcript


def _encoded(image: FrameImage) -> bytes:
    return encode_png(image) if isinstance(image, np.ndarray) else image
