"""The engine's loop with its live streams: opened, fed, asked, saved and moved between engines.

The stepping itself, and answers, are in :mod:`casa_core.engine.step_loop`.
"""

from __future__ import annotations

import time
from dataclasses import replace

from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.events import FrameDropped, Outcome
from casa_core.engine.image_encoder import Encoded
from casa_core.engine.inputs import count_tokens, frame_chunk
from casa_core.engine.live_stream import LiveStream, WaitingFrame
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript, model_identity
from casa_core.engine.step_loop import StepLoop, exclusive
from casa_core.errors import ConfigError, DataError, StoreError


class EngineLoop(StepLoop):
    """Runs answers and live streams of one model, step by step: see :class:`StepLoop`."""

    _known_identity: dict[str, str] | None = None

    @exclusive
    def open_stream(self, settings: StreamSettings | None = None) -> int:
        """Open a live stream.

        Returns:
            The number of its events, for the calls about it.

        Raises:
            Overloaded: If all slots for streams are taken, or the engine has no time left for another.
            ConfigError: If the model's text KV cannot be bounded as the settings want it.
            DataError: If the query is too long.
        """
        stream = self._new_stream(settings or StreamSettings())
        self._check_query(stream, stream.settings.query)
        stream.ids = self.processor.stream_prompt(stream.settings.query)
        self._check_length(stream, f"{len(stream.ids)}", len(stream.ids))
        stream.prompt = Encoded(TokenChunk(tuple(stream.ids)), ())
        self._join(stream)
        return stream.number

    @exclusive
    def push_frame(
        self, number: int, image: FrameImage | None, timestamp: float, *, due: float | None = None
    ) -> None:
        """Queue a stream's next frame; its caption is an event later.

        Args:
            image: ``None`` only for a model whose images are withheld (the blind baseline). Pixels must not
                be changed afterwards.
            timestamp: The frame's time in the stream, seconds; copied to its events.
            due: When its words are due, by ``time.monotonic``; the stream's own deadline by default.

        Raises:
            DataError: If the stream is closed.
        """
        stream = self.stream_state(number)
        while len(stream.waiting) >= self.settings.queued_frames:
            oldest = stream.waiting.popleft()
            oldest.encoding.cancel()
            self._steps.note(stream, [FrameDropped(oldest.timestamp)])
        self._queue(stream, image, timestamp, due)

    @exclusive
    def prompt(self, number: int, query: str) -> None:
        """Ask something further in the middle of a stream; the caption in progress ends here.

        The answer is a caption event with the prompt, about the latest frame.

        Raises:
            DataError: If the stream is closed, or the prompt is too long.
        """
        stream = self.stream_state(number)
        self._check_query(stream, query)
        tokens = len(self.processor.further_prompt(query, after_frame=True))
        self._check_length(stream, f"{tokens}", tokens)
        self._steps.note(stream, stream.add_prompt(query, time.monotonic()))
        self._woken.set()

    def stream_state(self, number: int) -> LiveStream:
        """A stream's state, to look at.

        Raises:
            DataError: If it is closed.
        """
        stream = self._steps.running.get(number)
        if not isinstance(stream, LiveStream):
            raise DataError(
                "The session is closed.", "It was closed before this call.", "Open a new session."
            )
        return stream

    @exclusive
    def settled(self, number: int) -> LiveStream:
        """A stream that has a slot and has read what it begins with, so that it can be moved.

        Raises:
            DataError: If it is closed.
        """
        stream = self.stream_state(number)
        while stream.slot is None or stream.encoding is not None:
            self._advance_when_ready()
            self.stream_state(number)
        self._steps.finish_reading(stream)
        return self.stream_state(number)

    @exclusive
    def kv_tokens(self, number: int) -> int:
        """Tokens in a stream's text KV, inserted image tokens among them."""
        return self._slots.kv_length(self._slot(number))

    @exclusive
    def image_tokens(self, number: int) -> int:
        """Image tokens in a stream's window: the latest frame's."""
        window_state = self._slots.state(self._slot(number)).window_state
        return window_state.image_tokens if window_state else 0

    # Moving a stream.

    @exclusive
    def save(self, number: int) -> SavedSession:
        """An exact snapshot: restored, even in another process, the stream continues with the same tokens.

        Raises:
            DataError: If the stream is closed.
        """
        stream = self.settled(number)
        assert stream.slot is not None
        sequence, sampler = self._slots.snapshot(stream.slot)
        return SavedSession(
            identity=self._identity(), transcript=stream.transcript(), sequence=sequence, sampler=sampler
        )

    @exclusive
    def depart(self, number: int) -> tuple[SavedSession, list[Outcome]]:
        """:meth:`save` a stream and end it here; its outcomes that no step has given are with it.

        Raises:
            DataError: If the stream is closed.
        """
        saved = self.save(number)
        outcomes = [event.outcome for event in self.take_events(number)]
        self.cancel(number)
        return saved, outcomes

    @exclusive
    def transcript(self, number: int) -> Transcript:
        """An approximate snapshot, small enough to keep after every frame: token ids and the latest frame.

        What earlier frames added to the text KV is lost; ``benchmarks/stream.py`` measures how much that is.
        """
        return self.settled(number).transcript()

    @exclusive
    def restore(self, saved: SavedSession, settings: StreamSettings | None = None) -> int:
        """Continue a saved stream with the same tokens.

        Args:
            settings: Its deadline is used; everything else is as it was.

        Returns:
            The stream's number here.

        Raises:
            StoreError: If another model or template made the snapshot.
            Overloaded: As :meth:`open_stream`.
        """
        here = self._identity()
        if saved.identity != here:
            differing = sorted(name for name in here if saved.identity.get(name) != here[name])
            raise StoreError(
                "The snapshot was taken of another model.",
                f"{', '.join(differing)} differ.",
                "Restore it with the checkpoint that was loaded when it was taken.",
            )
        stream = self._resumed(saved.transcript, settings)
        stream.saved = saved
        self._join_resumed(stream, saved.transcript)
        return stream.number

    @exclusive
    def replay(self, transcript: Transcript, settings: StreamSettings | None = None) -> int:
        """Continue a transcript approximately: its text and latest frame are read again.

        Args:
            settings: Its deadline and sampling are used; everything else is as it was.
        """
        stream = self._resumed(transcript, settings)
        ids, at = transcript.ids, transcript.frame_at
        withheld = self.model.config.images_withheld or transcript.frame is None

        def chunk() -> TokenChunk:
            frame = frame_chunk(transcript.frame, self.processor, images_withheld=withheld)
            return replace(frame, ids=ids[at:]).after(ids[:at]) if frame.grids else TokenChunk(ids)

        if ids:
            stream.encoding = self._encoder.encode(chunk, due=stream.arrived, live=True)
        self._join_resumed(stream, transcript)
        return stream.number

    def _new_stream(self, settings: StreamSettings) -> LiveStream:
        self._cancel_forgotten()
        self._admission.check_stream()
        bounds = settings.bounds
        if bounds == "default":
            bounds = TextBounds.within(self.context) if self._slots.sequences.boundable else None
        self._slots.sequences.check_bounds(bounds)
        # A turn: the end of the one before, a word that was cut off, and the frame's own tokens.
        turn = 3 + len(self.processor.frame_prefix_ids)
        if bounds is not None and (bounds.limit > self.context or bounds.recent < turn):
            raise ConfigError(
                f"A text KV of {bounds.recent} recent tokens, {bounds.limit} in all, cannot serve a stream.",
                f"A frame brings up to {turn} tokens, and the context is {self.context}.",
                "Set `recent` between them, or leave the stream's bounds out.",
            )
        return LiveStream(
            number=next(self._numbers), settings=settings, bounds=bounds, processor=self.processor
        )

    def _resumed(self, transcript: Transcript, settings: StreamSettings | None) -> LiveStream:
        own = replace(
            settings or StreamSettings(),
            query=transcript.query,
            max_tokens_per_frame=transcript.max_tokens_per_frame,
            max_tokens_per_prompt=transcript.max_tokens_per_prompt,
            bounds=transcript.bounds,
        )
        stream = self._new_stream(own)
        stream.adopt(transcript, time.monotonic())
        return stream

    def _join_resumed(self, stream: LiveStream, transcript: Transcript) -> None:
        self._join(stream)
        for timestamp, image in transcript.waiting:
            self._queue(stream, image, timestamp, None)

    def _queue(
        self, stream: LiveStream, image: FrameImage | None, timestamp: float, due: float | None
    ) -> None:
        now = time.monotonic()
        due = now + stream.settings.deadline_s if due is None else due
        withheld = self.model.config.images_withheld
        encoding = self._encoder.encode(
            lambda: frame_chunk(
                image, self.processor, images_withheld=withheld, max_pixels=self.settings.max_pixels
            ),
            due=due,
            live=True,
        )
        stream.waiting.append(WaitingFrame(image, timestamp, now, due, encoding))
        self._woken.set()

    def _slot(self, number: int) -> int:
        slot = self.settled(number).slot
        assert slot is not None
        return slot

    def _check_query(self, stream: LiveStream, query: str) -> None:
        """Refuse a query that is much too long before all of it is tokenized."""
        tokens = count_tokens(query, self.processor, self._most_at_once(stream))
        self._check_length(stream, f"at least {tokens}", tokens)

    def _check_length(self, stream: LiveStream, told: str, tokens: int) -> None:
        most = self._most_at_once(stream)
        if tokens > most:
            raise DataError(
                f"A query of {told} tokens is too long for a live stream.",
                f"Its text KV takes {most} at once.",
                "Shorten the query.",
            )

    def _most_at_once(self, stream: LiveStream) -> int:
        # Half, so that a frame and words still fit what is kept.
        return (stream.bounds.recent if stream.bounds is not None else self.context) // 2

    def _identity(self) -> dict[str, str]:
        if self._known_identity is None:
            self._known_identity = model_identity(self.model, self.processor)
        return self._known_identity
