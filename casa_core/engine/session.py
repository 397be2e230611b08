"""A live-caption stream: frames in, words out, at constant image memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from casa_core.decoding.plan import TokenChunk
from casa_core.engine.inputs import PreparedImage, image_chunk, prepare_image
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent, SamplingParams
from casa_core.engine.saved_session import SavedSession, Transcript, model_identity
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError, StoreError
from casa_core.media.decode import decode_image, encode_png
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a stream is captioned.

    Attributes:
        query: The viewer's request; empty for none.
        max_tokens_per_frame: Upper bound on the tokens generated after one frame; a caption that it cuts off
            is marked ``truncated``.
        sampling: Sampling settings; greedy by default. ``max_new_tokens`` and ``stop`` apply to answers only.
    """

    query: str = ""
    max_tokens_per_frame: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)


class StreamSession:
    """One live stream (:class:`casa_core.engine.protocol.StreamProtocol`).

    The text KV cache grows with the generated words and the template's tokens of a frame; the image KV is the
    latest frame's alone. The stop token that ends a frame's words is run with the next frame's prefill, where
    it still belongs to the old frame's window.

    Args:
        slots: Pool to allocate a slot in; with bounded text KV the stream never ends.

    Raises:
        DataError: If every slot is taken.
    """

    def __init__(self, slots: SlotPool, processor: CasaProcessor, settings: StreamSettings) -> None:
        self._slots = slots
        self._processor = processor
        self.settings = settings
        stops = (processor.frame_end_id, processor.end_id)
        self._slot: int | None = slots.allocate(settings.sampling, stop_ids=stops)
        # Tokens of the old window that have not been run yet.
        self._pending = processor.stream_prompt(settings.query)
        self._ids: list[int] = []  # tokens in the text KV, for a transcript
        self._frame: FrameImage | None = None  # the latest one, as it was pushed
        self._frame_at = 0  # how many of ``_ids`` precede it

    @property
    def model(self) -> CasaForConditionalGeneration:
        """The model that generates the captions."""
        return self._slots.model

    @property
    def text_tokens(self) -> int:
        """Text tokens in the KV cache."""
        return len(self._ids)

    @property
    def kv_tokens(self) -> int:
        """All tokens in the text KV cache: for insertion image tokens are among them."""
        return 0 if self._slot is None else self._slots.kv_length(self._slot)

    @property
    def image_tokens(self) -> int:
        """Image tokens in the window cache: the latest frame's."""
        window_state = None if self._slot is None else self._slots.state(self._slot).window_state
        return window_state.image_tokens if window_state else 0

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        """Read the next frame and generate the words that follow it; see ``StreamProtocol.push_frame``."""
        started = time.perf_counter()
        self._open_slot()
        prepared = self._prepare(image)
        ids = [*self._pending, *self._processor.frame_prefix_ids, self._processor.image_id]
        self._check_room(len(ids) + sum(self._inserted(one) for one in prepared))
        token = self._step(image_chunk(ids, [len(ids) - 1] * len(prepared), prepared))
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
        """An exact snapshot: restored, even in another process, the stream continues with the same tokens."""
        sequence, sampler = self._slots.snapshot(self._open_slot())
        return SavedSession(
            identity=model_identity(self.model, self._processor),
            transcript=self.transcript(),
            sequence=sequence,
            sampler=sampler,
        )

    def transcript(self) -> Transcript:
        """An approximate snapshot, small enough to keep after every frame: token ids and the latest frame.

        What earlier frames added to the text KV is lost; ``benchmarks/stream.py`` measures how much that is.
        """
        image_bytes = encode_png(self._frame) if isinstance(self._frame, np.ndarray) else self._frame
        return Transcript(
            query=self.settings.query,
            max_tokens_per_frame=self.settings.max_tokens_per_frame,
            ids=tuple(self._ids),
            pending=tuple(self._pending),
            frame=image_bytes,
            frame_at=self._frame_at,
        )

    def restore(self, saved: SavedSession) -> None:
        """Continue exactly where :meth:`save` was called; this session's own state is replaced.

        Raises:
            StoreError: If another model or template made the snapshot.
        """
        slot = self._open_slot()
        here = model_identity(self.model, self._processor)
        if saved.identity != here:
            differing = sorted(name for name in here if saved.identity.get(name) != here[name])
            raise StoreError(
                "The snapshot was taken of another model.",
                f"{', '.join(differing)} differ.",
                "Restore it with the checkpoint that was loaded when it was taken.",
            )
        self._slots.restore(slot, saved.sequence, saved.sampler)
        self._adopt(saved.transcript)
        self._ids = list(saved.transcript.ids)

    def replay(self, transcript: Transcript) -> None:
        """Continue approximately: read the transcript's text, and its latest frame at its position.

        The session must be a fresh one.
        """
        assert not self._ids, "a transcript is read into a fresh session"
        self._adopt(transcript)
        before, after = transcript.ids[: transcript.frame_at], transcript.ids[transcript.frame_at :]
        if before:
            self._step(TokenChunk(before))
        if after:
            prepared = self._prepare(transcript.frame)
            self._step(image_chunk(after, [0] * len(prepared), prepared))

    def close(self) -> None:
        """Free the slot and its caches; closing twice is harmless."""
        if self._slot is not None:
            self._slots.free(self._slot)
            self._slot, self._ids, self._frame = None, [], None

    def _inserted(self, image: PreparedImage) -> int:
        """Tokens that an image adds to the text KV: none beside fusion layers."""
        fusion = self.model.config.fusion_settings
        if not fusion.inserts:
            return 0
        return fusion.qformer_queries if fusion.kind == "qformer" else image.size.tokens

    def _open_slot(self) -> int:
        if self._slot is None:
            raise DataError(
                "The session is closed.", "It was closed before this call.", "Open a new session."
            )
        return self._slot

    def _prepare(self, image: FrameImage | None) -> list[PreparedImage]:
        if self.model.config.images_withheld:
            return []
        if image is None:
            raise DataError(
                "A frame has no image.", "Only a blind model takes frames without one.", "Pass its bytes."
            )
        pixels = decode_image(image) if isinstance(image, bytes) else image
        return [prepare_image(pixels, self._processor, frame=True)]

    def _step(self, chunk: TokenChunk) -> int:
        """Append tokens and choose the next; ``_ids`` follows what the bounded text KV drops."""
        slot = self._open_slot()
        before = self._slots.state(slot).dropped
        token = self._slots.step({slot: chunk})[slot]
        dropped = self._slots.state(slot).dropped - before
        if dropped:
            bounds = self._slots.sequences.bounds
            assert bounds is not None
            del self._ids[bounds.sinks : bounds.sinks + dropped]
            self._frame_at = max(self._frame_at - dropped, 0)
        self._ids += chunk.ids
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
                f"The stream's text has reached the model's context of {limit} tokens.",
                f"{self.kv_tokens} tokens were read or generated so far.",
                "Open a new session (it continues from the next frame), or one with bounded text KV.",
            )
