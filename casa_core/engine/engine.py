"""The inference engine: batched answers and live streams from one checkpoint. No Ray inside.

Batch evaluation and serving run this same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from casa_core.cache import CachedSequences, Extension
from casa_core.checkpoint import load_checkpoint
from casa_core.engine.inputs import prompt_extension
from casa_core.engine.requests import (
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
)
from casa_core.engine.sampling import choose_tokens, make_generator
from casa_core.engine.session import StreamSession
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing import CasaProcessor


class Engine:
    """Answers requests with one model.

    Calls are not thread-safe: give each engine one thread.

    Args:
        model: In evaluation mode, on its device.
        processor: The checkpoint's own.
    """

    def __init__(self, model: CasaForConditionalGeneration, processor: CasaProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
    ) -> Engine:
        """Load a checkpoint folder.

        Args:
            folder: As written by training.
            device: ``auto`` takes a GPU when there is one.
            dtype: Of the weights; as stored by default.

        Raises:
            StoreError: If the folder is no checkpoint.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor = load_checkpoint(folder)
        model.to(device=torch.device(device), dtype=dtype or model.dtype)  # pyright: ignore[reportCallIssue]
        return cls(model, processor)

    @property
    def info(self) -> dict[str, Any]:
        """What runs here: for model listings, reports and health checks."""
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
        """Answer requests together, in one batch.

        Raises:
            MediaError: If a picture cannot be decoded.
            DataError: If a prompt and its answer do not fit the model's context.
        """
        if not requests:
            return []
        answers = [_Answer(request, self._prompt(request)) for request in requests]
        state = CachedSequences(self.model, len(answers))
        rows = [answer.prompt for answer in answers]
        while True:
            logits_BV = state.extend(rows)
            self._choose(answers, logits_BV)
            if all(answer.finish_reason for answer in answers):
                return [answer.result(self.processor) for answer in answers]
            # A finished row keeps its place in the batch; what it is fed no longer matters.
            rows = [
                Extension([answer.ids[-1] if answer.ids else self.processor.end_id]) for answer in answers
            ]

    def stream(self, request: GenerationRequest) -> Iterator[GenerationDelta]:
        """Answer one request, yielding text as it is made; the last delta carries the finish reason."""
        answer = _Answer(request, self._prompt(request))
        state = CachedSequences(self.model, 1)
        row, said = answer.prompt, ""
        while answer.finish_reason is None:
            self._choose([answer], state.extend([row]))
            row = Extension([answer.ids[-1] if answer.ids else self.processor.end_id])
            text = answer.text(self.processor)
            # A token may end inside a character, or inside a stop string: hold back what may still change.
            safe = text if answer.finish_reason else text[: len(text) - answer.unsettled(text)]
            if len(safe) > len(said) and answer.finish_reason is None:
                yield GenerationDelta(text=safe[len(said) :])
                said = safe
        result = answer.result(self.processor)
        yield GenerationDelta(
            text=result.text[len(said) :],
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            image_tokens=result.image_tokens,
            completion_tokens=result.completion_tokens,
        )

    def open_session(self, query: str = "", *, max_tokens_per_frame: int = 16) -> StreamSession:
        """Open a live stream; see :class:`casa_core.engine.session.StreamSession`."""
        return StreamSession(
            self.model, self.processor, query=query, max_tokens_per_frame=max_tokens_per_frame
        )

    def _prompt(self, request: GenerationRequest) -> Extension:
        prompt = prompt_extension(
            request.sample, self.processor, images_withheld=self.model.config.images_withheld
        )
        limit = self.model.config.text_config.max_position_embeddings
        if len(prompt.ids) + request.sampling.max_new_tokens > limit:
            raise DataError(
                f"a prompt of {len(prompt.ids)} tokens and an answer of up to "
                f"{request.sampling.max_new_tokens} do not fit the model's context of {limit} tokens",
                "text shares one context; images take none of it",
                "shorten the conversation or ask for fewer tokens",
            )
        return prompt

    def _choose(self, answers: Sequence[_Answer], logits_BV: torch.Tensor) -> None:
        params = [answer.request.sampling for answer in answers]
        tokens = choose_tokens(logits_BV, params, [answer.generator for answer in answers])
        for answer, token in zip(answers, tokens, strict=True):
            answer.take(token, self.processor)


@dataclass(slots=True)
class _Answer:
    """One answer as it grows."""

    request: GenerationRequest
    prompt: Extension
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    completion_tokens: int = 0
    generator: torch.Generator | None = field(init=False)

    def __post_init__(self) -> None:
        self.generator = make_generator(self.request.sampling)

    def take(self, token: int, processor: CasaProcessor) -> None:
        """Accept a token, unless the answer is finished already."""
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
