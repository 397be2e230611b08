"""One answer, from its request to its last token."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from casa_core.decoding.plan import TokenChunk
from casa_core.engine.events import Outcome
from casa_core.engine.image_encoder import Encoded
from casa_core.engine.requests import (
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
)
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.text_so_far import TextSoFar


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """An answer's state.

    Attributes:
        number: The sequence's.
        streamed: Whether its text is wanted piece by piece.
        submitted: When it was asked for, seconds.
        encoding: Its prompt, while it is prepared.
        prompt: Its prompt, with embedded images.
        slot: Its slot, once it has one.
        read: How many tokens of the prompt have been read.
        cached_tokens: How many of these were in the slot's KV cache already.
        unread: The token to run before the next is chosen, once the prompt is read.
        ids: Generated tokens, the end token not included.
        logprobs: Theirs, where they were asked for.
        first_token_s: Seconds from its submission to its first token.
        finish_reason: Set at its end.
    """

    number: int
    request: GenerationRequest
    processor: CasaProcessor
    streamed: bool
    submitted: float
    encoding: Future[Encoded] | None = None
    prompt: Encoded | None = None
    slot: int | None = None
    read: int = 0
    cached_tokens: int = 0
    unread: int | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    completion_tokens: int = 0
    first_token_s: float = 0.0
    finish_reason: FinishReason | None = None
    _text: TextSoFar = field(init=False)
    _sent: int = 0
    _sent_logprobs: int = 0

    def __post_init__(self) -> None:
        self._text = TextSoFar(self.processor, self.request.sampling.stop)

    @property
    def finished(self) -> bool:
        """Whether its last token has been chosen."""
        return self.finish_reason is not None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end it."""
        return (self.processor.end_id,)

    @property
    def unread_prompt(self) -> bool:
        """Whether its prompt is there and has not been read to its end."""
        return self.prompt is not None and self.read < len(self.prompt.chunk.ids)

    def next_chunk(self, tokens: int) -> TokenChunk:
        """The part of its prompt to read next, of ``tokens`` tokens at most."""
        assert self.prompt is not None
        chunk = self.prompt.chunk
        return chunk.cut(self.read, min(self.read + tokens, len(chunk.ids)))

    def take(self, token: int, now: float, logprob: TokenLogprob | None = None) -> list[Outcome]:
        """Add a token chosen at ``now``: its text where it is streamed, the result where it was the last."""
        if not self.completion_tokens:
            self.first_token_s = now - self.submitted
        if logprob is not None and token != self.processor.end_id:
            self.logprobs.append(self._with_text(logprob))
        shown = self._append(token)
        self.unread = None if self.finished else token
        if self.finished:
            result = self.result()
            return [self._last_delta(result), result] if self.streamed else [result]
        if not self.streamed or len(shown) <= self._sent:
            return []
        piece, self._sent = shown[self._sent :], len(shown)
        return [GenerationDelta(text=piece, logprobs=self._unsent_logprobs())]

    def text(self) -> str:
        """The answer so far, cut before the first stop string."""
        return self._text.settled if self._text.stopped else self.processor.decode_text(self.ids)

    def result(self) -> GenerationResult:
        """The finished answer."""
        assert self.finish_reason is not None
        assert self.prompt is not None
        return GenerationResult(
            request_id=self.request.request_id,
            text=self.text(),
            token_ids=tuple(self.ids),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt.chunk.ids),
            image_tokens=sum(self.prompt.chunk.image_tokens),
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            logprobs=tuple(self.logprobs),
            first_token_s=self.first_token_s,
        )

    def _with_text(self, logprob: TokenLogprob) -> TokenLogprob:
        top = tuple(map(self._with_text, logprob.top))
        return replace(logprob, text=self.processor.token_text(logprob.token), top=top)

    def _unsent_logprobs(self) -> tuple[TokenLogprob, ...]:
        unsent = tuple(self.logprobs[self._sent_logprobs :])
        self._sent_logprobs = len(self.logprobs)
        return unsent

    def _append(self, token: int) -> str:
        """Add a token; all the text that may be shown, where it is streamed or may end by a stop string."""
        self.completion_tokens += 1
        if token == self.processor.end_id:
            self.finish_reason = "stop"
            return ""
        self.ids.append(token)
        shown = self._text.add(token) if self.streamed or self.request.sampling.stop else ""
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self.completion_tokens >= self.request.sampling.max_new_tokens:
            self.finish_reason = "length"
        return shown

    def _last_delta(self, result: GenerationResult) -> GenerationDelta:
        return GenerationDelta(
            text=result.text[self._sent :],
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            image_tokens=result.image_tokens,
            completion_tokens=result.completion_tokens,
            cached_tokens=result.cached_tokens,
            logprobs=self._unsent_logprobs(),
        )
