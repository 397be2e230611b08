"""A live stream: frames in, words out, at constant image memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from casa_core.decoding.plan import TokenChunk
from casa_core.engine.inputs import PreparedImage, image_extension, prepare_image
from casa_core.engine.requests import CaptionEvent, SamplingParams
from casa_core.engine.saved_session import SavedSession, Transcript, model_identity
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError, StoreError
from casa_core.media.decode import decode_image, encode_png
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor

Picture = bytes | NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a stream is captioned.

    Attributes:
        query: What the viewer asked for; empty for none.
        max_tokens_per_frame: Bound on the words of one frame; what it cuts off is reported as ``truncated``.
        sampling: How words are chosen; the likeliest by default. ``max_new_tokens`` and ``stop`` are for
            answers and have no meaning here.
    """

    query: str = ""
    max_tokens_per_frame: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)


class StreamSession:
    """One stream's conversation with the model.

    The text KV cache grows with the words said and the template's tokens of a frame; the image KV is the
    latest frame's alone. The stop token that ends a frame's words is not run at once but folded into the next
    frame's prefill, where it still belongs to the old frame's window.

    Args:
        slots: Where the stream takes a seat; with bounded text KV it can run for ever.
        processor: The model's.
        settings: How to caption.
    """

    def __init__(self, slots: SlotPool, processor: CasaProcessor, settings: StreamSettings) -> None:
        self._slots = slots
        self._processor = processor
        self.settings = settings
        stops = (processor.frame_end_id, processor.end_id)
        self._seat: int | None = slots.take(settings.sampling, stop_ids=stops)
        # Tokens of the old window that have not been run yet.
        self._pending = processor.stream_prompt(settings.query)
        self._ids: list[int] = []  # tokens in the text KV, for a transcript
        self._frame: Picture | None = None  # the latest one, as it came
        self._frame_at = 0  # how many of ``_ids`` stand before it

    @property
    def model(self) -> CasaForConditionalGeneration:
        """The model that speaks."""
        return self._slots.model

    @property
    def text_tokens(self) -> int:
        """Text tokens in the KV cache."""
        return len(self._ids)

    @property
    def kv_tokens(self) -> int:
        """All tokens in the text KV cache: for insertion image tokens are among them."""
        return 0 if self._seat is None else self._slots.held(self._seat)

    @property
    def image_tokens(self) -> int:
        """Image tokens whose keys and values are held apart: the latest frame's."""
        window_state = None if self._seat is None else self._slots.state(self._seat).window_state
        return window_state.image_tokens if window_state else 0

    def push_frame(self, image: Picture | None, timestamp: float) -> CaptionEvent:
        """Show the next frame and return what the model says before the one after it.

        Args:
            image: Encoded bytes or (height, width, 3) RGB pixels; ``None`` only for a model whose images are
                withheld (the blind baseline).
            timestamp: The frame's time, seconds; passed through to the event.

        Raises:
            DataError: If the session is closed, or its context is full.
            MediaError: If the frame cannot be decoded; the session goes on without it.
        """
        started = time.perf_counter()
        self._open_seat()
        prepared = self._prepare(image)
        ids = [*self._pending, *self._processor.frame_prefix_ids, self._processor.image_id]
        self._check_room(len(ids) + sum(self._inserted(one) for one in prepared))
        token = self._step(image_extension(ids, [len(ids) - 1] * len(prepared), prepared))
        self._frame, self._frame_at = image, len(self._ids) - 1
        words: list[int] = []
        while token not in (self._processor.frame_end_id, self._processor.end_id):
            words.append(token)
            if len(words) >= self.settings.max_tokens_per_frame:
                break
            token = self._step(TokenChunk([token]))
        truncated = bool(words) and len(words) >= self.settings.max_tokens_per_frame
        self._pending = (
            [*words[-1:], self._processor.frame_end_id] if truncated else [self._processor.frame_end_id]
        )
        return CaptionEvent(
            timestamp=timestamp,
            text=self._processor.decode_text(words),
            token_ids=tuple(words),
            latency_s=time.perf_counter() - started,
            text_tokens=self.text_tokens,
            truncated=truncated,
        )

    def save(self) -> SavedSession:
        """An exact snapshot: restored, even in another process, the stream goes on with the same tokens."""
        sequence, chooser = self._slots.snapshot(self._open_seat())
        return SavedSession(
            identity=model_identity(self.model, self._processor),
            transcript=self.transcript(),
            sequence=sequence,
            chooser=chooser,
        )

    def transcript(self) -> Transcript:
        """An approximate snapshot, small enough to keep after every frame: token ids and the latest frame.

        What earlier frames left in the text KV is lost; ``benchmarks/stream.py`` measures how much that is.
        """
        picture = encode_png(self._frame) if isinstance(self._frame, np.ndarray) else self._frame
        return Transcript(
            query=self.settings.query,
            max_tokens_per_frame=self.settings.max_tokens_per_frame,
            ids=tuple(self._ids),
            pending=tuple(self._pending),
            frame=picture,
            frame_at=self._frame_at,
        )

    def restore(self, saved: SavedSession) -> None:
        """Go on exactly where :meth:`save` was called, whatever this session has seen.

        Raises:
            StoreError: If another model or template made the snapshot.
        """
        seat = self._open_seat()
        here = model_identity(self.model, self._processor)
        if saved.identity != here:
            differing = sorted(name for name in here if saved.identity.get(name) != here[name])
            raise StoreError(
                "the snapshot was taken of another model",
                f"{', '.join(differing)} differ",
                "restore it with the checkpoint that was loaded when it was taken",
            )
        self._slots.restore(seat, saved.sequence, saved.chooser)
        self._adopt(saved.transcript)
        self._ids = list(saved.transcript.ids)

    def replay(self, transcript: Transcript) -> None:
        """Go on approximately: read the transcript's text, and its latest frame at its place.

        The session must be a fresh one.
        """
        assert not self._ids, "a transcript is read into a fresh session"
        self._adopt(transcript)
        before, after = transcript.ids[: transcript.frame_at], transcript.ids[transcript.frame_at :]
        if before:
            self._step(TokenChunk(before))
        if after:
            prepared = self._prepare(transcript.frame)
            self._step(image_extension(after, [0] * len(prepared), prepared))

    def close(self) -> None:
        """Give the seat back; closing twice is harmless."""
        if self._seat is not None:
            self._slots.leave(self._seat)
            self._seat, self._ids, self._frame = None, [], None

    def _inserted(self, image: PreparedImage) -> int:
        """Tokens that an image adds to the text KV: none beside fusion layers."""
        fusion = self.model.config.fusion_settings
        if not fusion.inserts:
            return 0
        return fusion.qformer_queries if fusion.kind == "qformer" else image.size.tokens

    def _open_seat(self) -> int:
        if self._seat is None:
            raise DataError(
                "the session is closed", "frames can only be pushed while it is open", "open a new one"
            )
        return self._seat

    def _prepare(self, image: Picture | None) -> list[PreparedImage]:
        if self.model.config.images_withheld:
            return []
        if image is None:
            raise DataError(
                "a frame without a picture", "only a blind model takes frames without one", "send its bytes"
            )
        rgb = decode_image(image) if isinstance(image, bytes) else image
        return [prepare_image(rgb, self._processor, frame=True)]

    def _step(self, extension: TokenChunk) -> int:
        """Append and choose, and keep the list of tokens in the KV in step with what it forgets."""
        seat = self._open_seat()
        dropped = self._slots.state(seat).dropped
        token = self._slots.step({seat: extension})[seat]
        forgotten = self._slots.state(seat).dropped - dropped
        if forgotten:
            bounds = self._slots.sequences.bounds
            assert bounds is not None
            del self._ids[bounds.sinks : bounds.sinks + forgotten]
            self._frame_at = max(self._frame_at - forgotten, 0)
        self._ids += extension.ids
        return token

    def _adopt(self, transcript: Transcript) -> None:
        self._pending = list(transcript.pending)
        self._frame, self._frame_at = transcript.frame, transcript.frame_at

    def _check_room(self, tokens: int) -> None:
        if self._slots.sequences.bounds is not None:
            return
        limit = self.model.config.text_config.max_position_embeddings
        if self.kv_tokens + tokens + self.settings.max_tokens_per_frame > limit:
            raise DataError(
                f"the stream's text has reached the model's context of {limit} tokens",
                f"{self.kv_tokens} tokens were said or read so far",
                "open a new session (it continues from the next frame), or one with bounded text KV",
            )
