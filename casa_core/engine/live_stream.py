"""A live-caption stream: frames in, words out, at constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.events import Failed, FrameRefused, Outcome
from casa_core.engine.image_encoder import Encoded
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent, StreamSettings, TokenLogprob
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.media.decode import encode_png
from casa_core.processing.processor import CasaProcessor


@dataclass(frozen=True, slots=True, eq=False)
class WaitingFrame:
    """A frame that has not been read.

    Attributes:
        image: As it was pushed; ``None`` where images are withheld.
        timestamp: Its time in the stream, seconds.
        arrived, due: When it came and when its words are due, by the engine's clock.
    """

    image: FrameImage | None
    timestamp: float
    arrived: float
    due: float
    encoding: Future[Encoded]

    @property
    def is_encoded(self) -> bool:
        """Whether its tokens are there."""
        return self.encoding.done() and self.encoding.exception() is None

    @property
    def has_failed(self) -> bool:
        """Whether it could not be encoded, and waits to be refused."""
        return self.encoding.done() and self.encoding.exception() is not None


@dataclass(slots=True, kw_only=True, eq=False)
class LiveStream:
    """A stream's state.

    The stop token that ends a frame's words is run with the next frame, where it still belongs to the old
    frame's window.

    Attributes:
        number: The sequence's.
        bounds: Bounds of its text KV.
        slot: Its slot, once it has one.
        saved: What it continues from, until it has its slot.
        encoding: What it begins with, while it is prepared.
        prompt: The same, while it is read: the query, or the text of a transcript.
        read: How many tokens of ``prompt`` have been read.
        ids: Tokens in the text KV, those of ``prompt`` that are still to be read included.
        pending: Tokens of the old window that have not been run yet.
        words: Those generated so far about the latest frame, or as the answer to a prompt; the last one is to
            be run. Empty between captions.
        frame: The latest frame, as it was pushed; ``frame_at`` of ``ids`` precede it.
        prompt_tokens, image_tokens: Read since the latest caption, before the words of the next.
        waiting: Frames to be read.
        prompts: Further prompts to be read; the first one is being answered if ``answering``.
    """

    number: int
    settings: StreamSettings
    bounds: TextBounds | None
    processor: CasaProcessor
    slot: int | None = None
    saved: SavedSession | None = None
    encoding: Future[Encoded] | None = None
    prompt: Encoded | None = None
    read: int = 0
    ids: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    frame: FrameImage | None = None
    frame_at: int = 0
    timestamp: float = 0.0
    waiting: deque[WaitingFrame] = field(default_factory=deque)
    prompts: deque[str] = field(default_factory=deque)
    answering: bool = False
    prompted: deque[float] = field(default_factory=deque)
    arrived: float = 0.0
    due: float = float("inf")
    prompt_tokens: int = 0
    image_tokens: int = 0

    @property
    def unread(self) -> int | None:
        """The token to run before the next is chosen, in the middle of a caption."""
        begun = self.encoding is None and self.prompt is None
        return self.words[-1] if self.words and begun else None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end its captions."""
        return self.processor.frame_end_id, self.processor.end_id

    @property
    def unread_prompt(self) -> bool:
        """Whether what it begins with has not been read to its end."""
        return self.prompt is not None

    def most_words(self, *, answering: bool) -> int:
        """Upper bound on the tokens of a caption, or of the answer to a prompt."""
        return self.settings.max_tokens_per_prompt if answering else self.settings.max_tokens_per_frame

    @property
    def ready(self) -> bool:
        """Whether a prompt or a frame can be read now."""
        if self.slot is None or self.encoding is not None or self.prompt is not None or self.words:
            return False
        return bool(self.prompts) or bool(self.waiting and self.waiting[0].is_encoded)

    @property
    def first_due(self) -> float:
        """When the words are due that are next to be generated; prompts come before frames."""
        return 0.0 if self.prompts else self.waiting[0].due

    def next_chunk(self, tokens: int) -> TokenChunk:
        """The part of its beginning to read next, of ``tokens`` tokens at most."""
        assert self.prompt is not None
        chunk = self.prompt.chunk
        most = tokens if self.bounds is None else min(tokens, self.bounds.recent)
        return chunk.cut(self.read, min(self.read + most, len(chunk.ids)))

    def next_turn(self) -> TokenChunk:
        """What to read next: a further prompt, or the oldest frame."""
        if self.prompts:
            further = self.processor.further_prompt(self.prompts[0], after_frame=bool(self.pending))
            return TokenChunk([*self.pending, *further])
        frame = self.waiting[0].encoding.result().chunk
        return frame.after([*self.pending, *self.processor.frame_prefix_ids])

    def begin_turn(self) -> None:
        """Take from its queue what :meth:`next_turn` gave."""
        self.answering = bool(self.prompts)
        if self.answering:
            self.arrived, self.due = self.prompted.popleft(), float("inf")
            return
        frame = self.waiting.popleft()
        self.image_tokens = sum(frame.encoding.result().chunk.image_tokens)
        self.frame, self.timestamp = frame.image, frame.timestamp
        self.arrived, self.due = frame.arrived, frame.due

    def refuse_turn(self, error: Exception) -> list[Outcome]:
        """Leave out what :meth:`next_turn` gave."""
        if self.prompts:
            return [Failed(error)]
        return [FrameRefused(self.waiting.popleft().timestamp, error)]

    def note_read(self, ids: Sequence[int], dropped: int, *, frame: bool = False) -> None:
        """Follow the text KV: it has read ``ids``, and ``dropped`` some of the oldest before."""
        if dropped:
            assert self.bounds is not None
            sinks = self.bounds.sinks
            del self.ids[sinks : sinks + dropped]
            self.frame_at = max(self.frame_at - dropped, min(self.frame_at, sinks))
        if self.prompt is None:
            self.ids += ids
        if not self.words:
            self.prompt_tokens += len(ids)
        if frame:
            self.frame_at = len(self.ids) - 1

    def take(self, token: int, now: float, logprob: TokenLogprob | None = None) -> list[Outcome]:
        """Add a chosen token; the caption or answer where it was the last. ``logprob`` is not used."""
        if token in self.stop_ids:
            return [self._caption(now, truncated=False)]
        self.words.append(token)
        most = self.most_words(answering=self.answering)
        return [self._caption(now, truncated=True)] if len(self.words) >= most else []

    def add_prompt(self, query: str, now: float) -> list[Outcome]:
        """Have a further prompt read next; the caption or answer in progress ends here."""
        outcomes: list[Outcome] = [self._caption(now, truncated=True)] if self.words else []
        self.prompts.append(query)
        self.prompted.append(now)
        return outcomes

    def transcript(self) -> Transcript:
        """Its tokens, its latest frame and what waits, small enough to keep after every frame."""
        return Transcript(
            query=self.settings.query,
            max_tokens_per_frame=self.settings.max_tokens_per_frame,
            max_tokens_per_prompt=self.settings.max_tokens_per_prompt,
            bounds=self.bounds,
            ids=tuple(self.ids),
            pending=tuple(self.pending),
            words=tuple(self.words),
            timestamp=self.timestamp,
            frame=_encoded(self.frame),
            frame_at=self.frame_at,
            waiting=tuple((frame.timestamp, _encoded(frame.image)) for frame in self.waiting),
            prompts=tuple(self.prompts),
            answering=self.answering,
        )

    def adopt(self, transcript: Transcript, now: float) -> None:
        """Take over everything that is not in the text KV, but for the frames that wait."""
        self.ids = list(transcript.ids)
        self.pending, self.words = list(transcript.pending), list(transcript.words)
        self.frame, self.frame_at = transcript.frame, transcript.frame_at
        self.timestamp, self.answering = transcript.timestamp, transcript.answering
        self.prompts = deque(transcript.prompts)
        self.prompted = deque([now] * (len(self.prompts) - self.answering))
        self.arrived = now
        if self.words and not self.answering:
            self.due = now + self.settings.deadline_s

    def _caption(self, now: float, *, truncated: bool) -> CaptionEvent:
        words, self.words = self.words, []
        end = self.processor.frame_end_id
        self.pending = [*words[-1:], end] if truncated else [end]
        answered, self.answering = self.answering, False
        prompt_tokens, self.prompt_tokens = self.prompt_tokens, 0
        image_tokens, self.image_tokens = self.image_tokens, 0
        return CaptionEvent(
            timestamp=self.timestamp,
            text=self.processor.decode_text(words),
            token_ids=tuple(words),
            latency_s=now - self.arrived,
            text_tokens=len(self.ids),
            truncated=truncated,
            late_s=max(now - self.due, 0.0),
            prompt=self.prompts.popleft() if answered else None,
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
        )


def _encoded(image: FrameImage | None) -> bytes | None:
    return encode_png(image) if isinstance(image, np.ndarray) else image
