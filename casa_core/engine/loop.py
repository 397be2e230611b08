"""The engine's loop: answers and live streams join and leave at any step, and share every forward.

A step runs at most three forwards: prompts are read in pieces; frames and further prompts that have come are
read together; every running answer and caption gets one more token. Images are prepared and embedded ahead of
it (:mod:`casa_core.engine.image_encoder`). No kind of work waits for all of another: that is the share kept
for each.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_batch import Room
from casa_core.decoding.kv_cache import TextBounds
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.admission import Admission
from casa_core.engine.answer import Answer
from casa_core.engine.batch_steps import BatchSteps, Running
from casa_core.engine.events import Event, FrameDropped
from casa_core.engine.image_encoder import Encoded, ImageEncoder
from casa_core.engine.inputs import frame_chunk
from casa_core.engine.live_stream import LiveStream, StreamSettings, WaitingFrame
from casa_core.engine.load import Load
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import GenerationRequest
from casa_core.engine.saved_session import SavedSession, Transcript, model_identity
from casa_core.engine.settings import EngineSettings
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError, StoreError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor


class EngineLoop:
    """Runs answers and live streams of one model, step by step. Calls are not thread-safe.

    Args:
        model: On its device; put into evaluation mode. It belongs to the engine from now on: its projections
            become views of larger matrices.
        processor: The checkpoint's own.
        settings: Its size and shares.
        decode: Keywords of :class:`DecodeStep`: ``compile``, ``quantize``.

    Raises:
        ConfigError: If what these need is missing here.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        processor: CasaProcessor,
        settings: EngineSettings | None = None,
        **decode: Any,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.settings = settings or EngineSettings()
        self.decode = DecodeStep(self.model, **decode)
        self.load = Load()
        room = Room(text=self.context) if self.settings.preallocate else Room()
        self._slots = SlotPool(self.model, self.settings.slots, room=room, decode=self.decode)
        self._steps = BatchSteps(self._slots, self.settings.prefill_tokens, self.context, self.load)
        self._numbers = itertools.count()
        self._events: list[Event] = []
        self._known_identity: dict[str, str] | None = None
        self._woken = threading.Event()
        self._encoder = ImageEncoder(
            self.model,
            cache_tokens=self.settings.image_cache_tokens,
            batch=self.settings.encode_batch,
            threads=self.settings.threads,
            load=self.load,
            wake=self._woken.set,
        )
        self._admission = Admission(
            self._steps,
            self._encoder,
            self.settings,
            context=self.context,
            images_withheld=self.model.config.images_withheld,
        )
        self._steps.ended = self._admission.release

    @property
    def context(self) -> int:
        """Text tokens of an answer with its prompt, and of an unbounded stream."""
        own = self.model.config.text_config.max_position_embeddings
        return min(self.settings.context or own, own)

    # What is asked of it.

    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
        """Ask for an answer.

        Args:
            streamed: Give its text piece by piece, as deltas, before the result.

        Returns:
            The number of its events.

        Raises:
            Overloaded: If as many answers wait as may wait.
        """
        self._admission.check_answer()
        answer = Answer(
            number=next(self._numbers),
            request=request,
            processor=self.processor,
            streamed=streamed,
            submitted=time.monotonic(),
        )
        self._join(answer)
        return answer.number

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
        ids = self.processor.stream_prompt(stream.settings.query)
        self._check_prompt(stream, ids)
        stream.prompt = Encoded(TokenChunk(ids), ())
        self._join(stream)
        return stream.number

    def push_frame(
        self, number: int, image: FrameImage | None, timestamp: float, *, due: float | None = None
    ) -> None:
        """Queue a stream's next frame; its caption is an event later.

        Args:
            image: ``None`` only for a model whose images are withheld (the blind baseline).
            timestamp: The frame's time in the stream, seconds; copied to its events.
            due: When its words are due, by ``time.monotonic``; the stream's own deadline by default.

        Raises:
            DataError: If the stream is closed.
        """
        stream = self.stream_state(number)
        if len(stream.waiting) >= self.settings.queued_frames:
            oldest = stream.waiting.popleft()
            oldest.encoding.cancel()
            self._steps.note(stream, [FrameDropped(oldest.timestamp)])
        self._queue(stream, image, timestamp, due)

    def prompt(self, number: int, query: str) -> None:
        """Ask something further in the middle of a stream; the caption in progress ends here.

        The answer is a caption event with the prompt, about the latest frame.

        Raises:
            DataError: If the stream is closed, or the prompt is too long.
        """
        stream = self.stream_state(number)
        self._check_prompt(stream, self.processor.further_prompt(query, after_frame=True))
        self._steps.note(stream, stream.add_prompt(query, time.monotonic()))
        self._woken.set()

    def cancel(self, number: int) -> None:
        """End an answer or a stream without further events; ending it twice is harmless."""
        if (one := self._steps.running.get(number)) is not None:
            self._admission.release(one)
        self._events = [event for event in self._events if event.sequence != number]
        self._steps.events = [event for event in self._steps.events if event.sequence != number]

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

    def settled(self, number: int) -> LiveStream:
        """A stream that has a slot and has read what it begins with, so that it can be moved.

        Raises:
            DataError: If it is closed.
        """
        stream = self.stream_state(number)
        while stream.slot is None or stream.encoding is not None:
            self._advance()
            self.stream_state(number)
        self._steps.finish_reading(stream)
        return stream

    def kv_tokens(self, number: int) -> int:
        """Tokens in a stream's text KV, inserted image tokens among them."""
        return self._slots.kv_length(self._slot(number))

    def image_tokens(self, number: int) -> int:
        """Image tokens in a stream's window: the latest frame's."""
        window_state = self._slots.state(self._slot(number)).window_state
        return window_state.image_tokens if window_state else 0

    # Moving a stream.

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

    def transcript(self, number: int) -> Transcript:
        """An approximate snapshot, small enough to keep after every frame: token ids and the latest frame.

        What earlier frames added to the text KV is lost; ``benchmarks/stream.py`` measures how much that is.
        """
        return self.settled(number).transcript()

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
        self._join(stream)
        return stream.number

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
        self._join(stream)
        return stream.number

    # Stepping.

    def step(self) -> list[Event]:
        """Advance everything by a step; what has happened since the last one."""
        self._advance()
        return self.take_events()

    def take_events(self) -> list[Event]:
        """What has happened since the last step: :meth:`prompt`, :meth:`save` and :meth:`push_frame` may end
        captions or drop frames."""
        events = [*self._events, *self._steps.events]
        self._events, self._steps.events = [], []
        return events

    def events_of(self, numbers: Container[int]) -> list[Event]:
        """Advance by a step, but leave the events of others for those who wait for them."""
        self._advance()
        mine = [event for event in self._events if event.sequence in numbers]
        self._events = [event for event in self._events if event.sequence not in numbers]
        return mine

    @property
    def busy(self) -> bool:
        """Whether a step would do something now."""
        return (
            bool(self._events or self._steps.events)
            or self._encoder.pending
            or self._admission.has_work
            or self._steps.has_work
        )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is something to do; false after the time is over. Anything asked of the engine,
        and any image that is ready, ends the waiting."""
        self._woken.clear()
        return self.busy or self._woken.wait(timeout_s)

    def close(self) -> None:
        """End everything, and the threads."""
        for number in list(self._steps.running):
            self.cancel(number)
        self._encoder.close()

    def _advance(self) -> None:
        started = time.perf_counter()
        self._admission.admit()
        self._encoder.run()
        self._admission.collect()
        self._admission.admit()
        self._steps.read_prompts()
        self._steps.read_turns()
        self._steps.decode()
        self.load.stepped(time.perf_counter() - started)
        self._events += self._steps.events
        self._steps.events = []

    def _join(self, one: Running) -> None:
        self._admission.join(one)
        self._woken.set()

    def _new_stream(self, settings: StreamSettings) -> LiveStream:
        self._admission.check_stream()
        bounds = settings.bounds
        if bounds == "default":
            bounds = TextBounds.within(self.context) if self._slots.sequences.boundable else None
        self._slots.sequences.check_bounds(bounds)
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
        for timestamp, image in transcript.waiting:
            self._queue(stream, image, timestamp, None)
        return stream

    def _queue(
        self, stream: LiveStream, image: FrameImage | None, timestamp: float, due: float | None
    ) -> None:
        now = time.monotonic()
        due = now + stream.settings.deadline_s if due is None else due
        withheld = self.model.config.images_withheld
        encoding = self._encoder.encode(
            lambda: frame_chunk(image, self.processor, images_withheld=withheld), due=due, live=True
        )
        stream.waiting.append(WaitingFrame(image, timestamp, now, due, encoding))
        self._woken.set()

    def _slot(self, number: int) -> int:
        slot = self.settled(number).slot
        assert slot is not None
        return slot

    def _check_prompt(self, stream: LiveStream, ids: Sequence[int]) -> None:
        # Half, so that a frame and words still fit what is kept.
        most = (stream.bounds.recent if stream.bounds is not None else self.context) // 2
        if len(ids) > most:
            raise DataError(
                f"A query of {len(ids)} tokens is too long for a live stream.",
                f"Its text KV takes {most} at once.",
                "Shorten the query.",
            )

    def _identity(self) -> dict[str, str]:
        if self._known_identity is None:
            self._known_identity = model_identity(self.model, self.processor)
        return self._known_identity
