"""What goes into the engine and what comes out of it. Batch evaluation and serving speak these types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from casa_core.types import Sample

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Upper bound on generated tokens, the end token included.
        temperature: 0 picks the most likely token; above 0 samples.
        top_p: Nucleus mass kept when sampling.
        seed: Seed of the request's own generator; ``None`` draws one.
        stop: Strings that end the answer; they are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation to continue: ``sample`` ends with a user turn.

    Attributes:
        sample: Images carry their encoded bytes.
        sampling: How to choose tokens.
        request_id: Echoed in the result.
    """

    sample: Sample
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A finished answer with its token accounts (image tokens are never part of the text's).

    Attributes:
        request_id: Of the request.
        text: The answer, cut before a stop string.
        token_ids: The tokens behind it, the end token not included.
        finish_reason: ``stop`` for the end token or a stop string, ``length`` for the limit.
        prompt_tokens: Text tokens of the conversation, template included.
        image_tokens: Of its pictures, after the patch merge.
        completion_tokens: Tokens generated, the end token included.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDelta:
    """A piece of an answer as it is made; ``finish_reason`` is set on the last one only."""

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEvent:
    """What the model said after one frame of a live stream.

    Attributes:
        timestamp: The frame's time in the stream, seconds.
        text: Words said before the next frame; empty when the model stayed silent.
        token_ids: The tokens behind ``text``, the frame's stop token not included.
        latency_s: Wall-clock seconds from the frame's arrival at the engine to its last token.
        text_tokens: Text tokens held in the stream's KV cache after this frame.
        truncated: True where the per-frame token limit ended the words instead of the stop token.
    """

    timestamp: float
    text: str
    token_ids: tuple[int, ...]
    latency_s: float
    text_tokens: int
    truncated: bool = False
