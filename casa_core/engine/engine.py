"""The inference engine: batched answers and live streams from one checkpoint, for evaluation and serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_cache import TextBounds
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.requests import (
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.engine.session import StreamSession, StreamSettings
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import load_checkpoint


class Engine:
    """Generates answers and live captions with one model (:class:`casa_core.engine.protocol.EngineProtocol`).

    Calls are not thread-safe: give each engine one thread.

    Args:
        model: On its device; put into evaluation mode. It belongs to the engine from now on: its projections
            become views of larger matrices.
        processor: The checkpoint's own.
        decode: Keywords of :class:`DecodeStep`: ``compile``, ``quantize``.

    Raises:
        ConfigError: If what these need is missing here.
    """

    def __init__(self, model: CasaForConditionalGeneration, processor: CasaProcessor, **decode: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        self.decode = DecodeStep(self.model, **decode)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        **decode: Any,
    ) -> Engine:
        """Load a checkpoint folder.

        Args:
            folder: As written by training.
            device: ``auto`` takes a GPU if there is one.
            dtype: Type of the weights; as stored by default.
            decode: Keywords of :class:`DecodeStep`: ``compile``, ``quantize``.

        Raises:
            StoreError: If the folder is not a checkpoint.
            ConfigError: If what ``decode`` needs is missing here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor = load_checkpoint(folder)
        model.to(device=torch.device(device), dtype=dtype or model.dtype)  # pyright: ignore[reportCallIssue]
        return cls(model, processor, **decode)

    @property
    def info(self) -> dict[str, Any]:
        """Facts about model and device, for model listings, reports and health checks."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "fusion": dict(self.model.config.fusion),
            "backbone": self.model.config.text_config.model_type,
            "template": self.processor.template,
            "max_side": self.processor.max_side,
            "context": self.model.config.text_config.max_position_embeddings,
            "blind": self.model.config.images_withheld,
            "device": str(self.model.device),
        }

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answer requests in one batch, in their order; errors as in ``EngineProtocol.generate``."""
        if not requests:
            return []
        slots = SlotPool(self.model, len(requests), decode=self.decode)
        answers = {
            self._allocate(slots, request): _Answer(request, self._prompt(request)) for request in requests
        }
        unread = {slot: answer.prompt for slot, answer in answers.items()}
        while unread:
            for slot, token in slots.step(unread).items():
                answers[slot].append(token, self.processor)
                unread[slot] = TokenChunk([token])
            unread = {slot: rest for slot, rest in unread.items() if answers[slot].finish_reason is None}
        return [answer.result(self.processor) for answer in answers.values()]

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        """Answer one request, yielding text as it is generated; errors as :meth:`generate`."""
        answer = _Answer(request, self._prompt(request))
        slots = SlotPool(self.model, 1, decode=self.decode)
        slot, unread, sent = self._allocate(slots, request), answer.prompt, ""
        while answer.finish_reason is None:
            token = slots.step({slot: unread})[slot]
            answer.append(token, self.processor)
            unread = TokenChunk([token])
            text = answer.text(self.processor)
            # A token may end inside a character, or inside a stop string: hold back what may still change.
            safe = text if answer.finish_reason else text[: len(text) - answer.unsettled(text)]
            if len(safe) > len(sent) and answer.finish_reason is None:
                yield GenerationDelta(text=safe[len(sent) :])
                sent = safe
        result = answer.result(self.processor)
        yield GenerationDelta(
            text=result.text[len(sent) :],
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            image_tokens=result.image_tokens,
            completion_tokens=result.completion_tokens,
        )

    def open_session(
        self,
        query: str = "",
        *,
        max_tokens_per_frame: int = 16,
        sampling: SamplingParams | None = None,
        bounds: TextBounds | None = None,
        slots: SlotPool | None = None,
    ) -> StreamSession:
        """Open a live stream; see :class:`casa_core.engine.session.StreamSession`.

        Args:
            query, max_tokens_per_frame, sampling: As in :class:`StreamSettings`.
            bounds: Bounds of the text KV, with which the stream never ends; ``None``: until the model's
                context is full. Unused where ``slots`` is given.
            slots: Pool that the stream shares with others; one of its own by default.

        Raises:
            DataError: If every slot of ``slots`` is taken.
            ConfigError: If the model's text KV cannot be bounded.
        """
        settings = StreamSettings(
            query=query, max_tokens_per_frame=max_tokens_per_frame, sampling=sampling or SamplingParams()
        )
        slots = slots or SlotPool(self.model, 1, bounds=bounds, decode=self.decode)
        return StreamSession(slots, self.processor, settings)

    def restore_session(
        self, saved: SavedSession, *, bounds: TextBounds | None = None, slots: SlotPool | None = None
    ) -> StreamSession:
        """Continue a saved session with the same tokens; give the bounds it had.

        Raises:
            StoreError: If another model or template made the snapshot.
        """
        session = self._like(saved.transcript, bounds, slots)
        session.restore(saved)
        return session

    def replay_session(
        self, transcript: Transcript, *, bounds: TextBounds | None = None, slots: SlotPool | None = None
    ) -> StreamSession:
        """Continue a transcript approximately: its text and latest frame are read again."""
        session = self._like(transcript, bounds, slots)
        session.replay(transcript)
        return session

    def _like(
        self, transcript: Transcript, bounds: TextBounds | None, slots: SlotPool | None
    ) -> StreamSession:
        return self.open_session(
            transcript.query,
            max_tokens_per_frame=transcript.max_tokens_per_frame,
            bounds=bounds,
            slots=slots,
        )

    def _allocate(self, slots: SlotPool, request: GenerationRequest) -> int:
        return slots.allocate(request.sampling, stop_ids=(self.processor.end_id,))

    def _prompt(self, request: GenerationRequest) -> TokenChunk:
        """The conversation as tokens and patches.

        Its text must fit the context; inserted image tokens are not counted, as in transformers.
        """
        prompt = prompt_chunk(
            request.sample, self.processor, images_withheld=self.model.config.images_withheld
        )
        limit = self.model.config.text_config.max_position_embeddings
        if len(prompt.ids) + request.sampling.max_new_tokens > limit:
            raise DataError(
                f"A prompt of {len(prompt.ids)} tokens and an answer of up to "
                f"{request.sampling.max_new_tokens} do not fit the model's context of {limit} tokens.",
                "Prompt and answer share one context; image tokens are not counted.",
                "Shorten the conversation or ask for fewer tokens.",
            )
        return prompt


@dataclass(slots=True)
class _Answer:
    """One answer while it is generated."""

    request: GenerationRequest
    prompt: TokenChunk
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    completion_tokens: int = 0

    def append(self, token: int, processor: CasaProcessor) -> None:
        """Add a token, unless the answer is finished already."""
        if self.finish_reason is not None:
            return
        self.completion_tokens += 1
        if token == processor.end_id:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        text = processor.decode_text(self.ids) if self.request.sampling.stop else ""
        if any(stop in text for stop in self.request.sampling.stop):
            self.finish_reason = "stop"
        elif self.completion_tokens >= self.request.sampling.max_new_tokens:
            self.finish_reason = "length"

    def text(self, processor: CasaProcessor) -> str:
        """The answer so far, cut before the first stop string."""
        text = processor.decode_text(self.ids)
        ends = [text.index(stop) for stop in self.request.sampling.stop if stop in text]
        return text[: min(ends)] if ends else text

    def unsettled(self, text: str) -> int:
        """Characters at the end that later tokens may still change or cut off."""
        broken = len(text) - len(text.rstrip("�"))
        partial = max(
            (
                n
                for stop in self.request.sampling.stop
                for n in range(1, len(stop))
                if text.endswith(stop[:n])
            ),
            default=0,
        )
        return max(broken, partial)

    def result(self, processor: CasaProcessor) -> GenerationResult:
        """The finished answer."""
        assert self.finish_reason is not None
        return GenerationResult(
            request_id=self.request.request_id,
            text=self.text(processor),
            token_ids=tuple(self.ids),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt.ids),
            image_tokens=sum(self.prompt.image_tokens),
            completion_tokens=self.completion_tokens,
        )
