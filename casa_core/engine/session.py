"""A live stream: frames in, words out, at constant image memory."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from casa_core.cache import CachedSequences
from casa_core.engine.inputs import image_extension, prepare_image
from casa_core.engine.requests import CaptionEvent
from casa_core.errors import DataError
from casa_core.media import decode_image
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing import CasaProcessor


class StreamSession:
    """One stream's conversation with the model.

    The text KV cache grows with the words said and two template tokens a frame; the image KV is the latest
    frame's alone. The stop token that ends a frame's words is not run at once but folded into the next
    frame's prefill, where it still belongs to the old frame's window.

    Args:
        model: The fused model.
        processor: Its processor.
        query: What the viewer asked for; empty for none.
        max_tokens_per_frame: Bound on the words of one frame; what it cuts off is reported as ``truncated``.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        processor: CasaProcessor,
        *,
        query: str,
        max_tokens_per_frame: int,
    ) -> None:
        self._model = model
        self._processor = processor
        self._max_tokens = max_tokens_per_frame
        self._state = CachedSequences(model, 1)
        self._pending = processor.stream_prompt(query)  # tokens of the old window that have not been run yet
        self._closed = False

    @property
    def text_tokens(self) -> int:
        """Text tokens in the KV cache."""
        return self._state.lengths[0]

    @property
    def image_tokens(self) -> int:
        """Image tokens whose keys and values are held: the latest frame's."""
        carry = self._state.carries[0]
        return carry.image_tokens if carry else 0

    def push_frame(self, image: bytes | NDArray[np.uint8] | None, timestamp: float) -> CaptionEvent:
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
        if self._closed:
            raise DataError(
                "the session is closed", "frames can only be pushed while it is open", "open a new one"
            )
        extension_ids = [*self._pending, self._processor.image_id]
        self._check_room(len(extension_ids))
        prepared = []
        if not self._model.config.images_withheld:
            if image is None:
                raise DataError("a frame without a picture", "only a blind model takes frames without one")
            rgb = decode_image(image) if isinstance(image, bytes) else image
            prepared = [prepare_image(rgb, self._processor)]
        logits_BV = self._state.extend(
            [image_extension(extension_ids, [len(extension_ids) - 1] * len(prepared), prepared)]
        )
        words: list[int] = []
        token = int(logits_BV.argmax())
        while token not in (self._processor.frame_end_id, self._processor.end_id):
            words.append(token)
            if len(words) >= self._max_tokens:
                break
            logits_BV = self._state.extend([image_extension([token], [], [])])
            token = int(logits_BV.argmax())
        truncated = bool(words) and len(words) >= self._max_tokens
        self._pending = (
            [words[-1], self._processor.frame_end_id] if truncated else [self._processor.frame_end_id]
        )
        return CaptionEvent(
            timestamp=timestamp,
            text=self._processor.decode_text(words),
            token_ids=tuple(words),
            latency_s=time.perf_counter() - started,
            text_tokens=self.text_tokens,
            truncated=truncated,
        )

    def close(self) -> None:
        """Release the caches; closing twice is harmless."""
        self._closed = True
        self._state = CachedSequences(self._model, 1)

    def _check_room(self, tokens: int) -> None:
        limit = self._model.config.text_config.max_position_embeddings
        if self.text_tokens + tokens + self._max_tokens > limit:
            raise DataError(
                f"the stream's text has reached the model's context of {limit} tokens",
                f"{self.text_tokens} tokens were said or read so far",
                "open a new session; it continues from the next frame",
            )
