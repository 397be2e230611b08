"""The engine's inputs and outputs: requests, settings of streams and sampling, results, deltas, captions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from casa_core.decoding.bounds import TextBounds
from casa_core.errors import ConfigError
from casa_core.types import Sample

FinishReason = Literal["stop", "length"]

TOKENS_PER_FRAME = 16
"""Upper bound on the tokens generated after one frame of a live stream, by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. By default the likeliest token of the model's own logits (greedy).

    Repetition counts generated tokens only: neither the prompt nor a stop token is part of it
    (:mod:`casa_core.engine.logits` has the formulas).

    Attributes:
        max_new_tokens: Upper bound on generated tokens, the end token included; at least 1.
        temperature: 0 takes the most likely token; above 0 samples, the higher the more evenly.
        top_p: Nucleus mass kept when sampling, in [0, 1]; 1 keeps every token, 0 the most likely one alone.
        top_k: How many of the most likely tokens are kept when sampling; 0 keeps every token.
        min_p: Tokens below this share of the most likely token's probability are dropped when sampling,
            in [0, 1]; 0 keeps every token.
        seed: Seed of the request's own random numbers, in [−2⁶³, 2⁶⁴); ``None`` draws one.
        stop: Strings that end the answer; they are not part of it.
        repetition_penalty: Nats subtracted from the logit of a token that was just generated; 0 subtracts
            nothing. (Elsewhere, the parameter of this name is a factor.)
        repetition_decay: Share of the penalty that is left after each further token, in [0, 1]: 1 counts
            every occurrence in full, 0 the last token only.
        no_repeat_ngram_size: A token that would complete an n-gram of this length for the second time is
            forbidden; 0 forbids nothing, 1 every token of the window.
        no_repeat_window: How many of the last generated tokens are searched for the n-gram; at least its
            length.
        stop_bias: Added to the logits of the stop tokens: above 0 answers and captions get shorter, below 0
            longer.
        logprobs: Give each token of an answer with its log-probability, and so many of the likeliest tokens
            at its place; ``None``: without.

    Raises:
        ConfigError: If a value is out of range; the message names it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 0.0
    repetition_decay: float = 0.9
    no_repeat_ngram_size: int = 0
    no_repeat_window: int = 128
    stop_bias: float = 0.0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        largest = math.nextafter(math.inf, 0)  # any finite number
        for name, low, high, meaning in (
            ("max_new_tokens", 1, largest, "An answer has at least one token."),
            ("temperature", 0, largest, "0 takes the most likely token, above 0 samples."),
            ("top_p", 0, 1, "It is a share of the probability mass; 1 keeps every token."),
            ("top_k", 0, largest, "It is a number of tokens; 0 keeps every token."),
            ("min_p", 0, 1, "It is a share of the most likely token's probability; 0 keeps every token."),
            ("repetition_penalty", 0, largest, "It is subtracted from logits; 0 switches it off."),
            ("repetition_decay", 0, 1, "It is the share left after each token."),
            ("no_repeat_ngram_size", 0, largest, "It is a number of tokens; 0 forbids no n-gram."),
            ("no_repeat_window", 1, largest, "It is a number of tokens."),
            ("stop_bias", -largest, largest, "It is added to the stop tokens' logits; 0 adds nothing."),
            ("logprobs", 0, largest, "It is a number of tokens; 0 names the chosen ones alone."),
            ("seed", -(2**63), 2**64 - 1, "It is a 64-bit number; leave it out to draw one."),
        ):
            value = getattr(self, name)
            # Written so that NaN, which compares false with everything, is refused too.
            if value is not None and not low <= value <= high:
                span = f"{low} or more" if high == largest else f"a number from {low} to {high}"
                span = "a finite number" if low == -largest else span
                raise ConfigError(f"`{name}` is {value}.", meaning, f"Set `{name}` to {span}.")
        if self.no_repeat_ngram_size > self.no_repeat_window:
            raise ConfigError(
                f"`no_repeat_window` is {self.no_repeat_window} tokens, "
                f"but `no_repeat_ngram_size` is {self.no_repeat_ngram_size}.",
                "An n-gram longer than the window can never lie in it, so nothing would be forbidden.",
                f"Set `no_repeat_window` to at least {self.no_repeat_ngram_size}.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A conversation to continue: ``sample`` ends with a user turn.

    Attributes:
        sample: Its images hold their encoded bytes.
        sampling: Sampling settings.
        request_id: Echoed in the result.
        pixels: Those of its images before resizing, all together, where they are known: many are decoded
            apart from the prompts of others.
        model: Name of the model, where there are several engines to choose from; the engine ignores it.
    """

    sample: Sample
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = ""
    pixels: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its log-probability by the model's own logits: no temperature, nothing dropped.

    Attributes:
        token: Its id.
        logprob: In nats.
        text: The token alone; where it is a part of a character, U+FFFD.
        top: The likeliest tokens at its place, likeliest first; of those themselves, none.
    """

    token: int
    logprob: float
    text: str = ""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A finished answer with its token counts (text counts never include image tokens).

    Attributes:
        request_id: The request's.
        text: The answer, cut before a stop string.
        token_ids: The tokens behind it, the end token not included.
        finish_reason: ``stop`` for the end token or a stop string, ``length`` for the limit.
        prompt_tokens: Text tokens of the conversation, template included.
        image_tokens: Image tokens of the conversation, after the patch merge.
        completion_tokens: Tokens generated, the end token included.
        cached_tokens: How many of the prompt's were not read again, as an earlier answer had the same
            beginning.
        logprobs: One for each of ``token_ids``, where they were asked for.
        first_token_s: Seconds from its submission to its first token; equal answers may differ in it.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    first_token_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDelta:
    """A piece of an answer; ``finish_reason`` and the counts are set on the last one only.

    ``logprobs`` are those of the tokens since the piece before, where they were asked for.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEvent:
    """The words generated after one frame of a live stream.

    Attributes:
        timestamp: The frame's time in the stream, seconds.
        text: The words; empty if the model stayed silent.
        token_ids: The tokens behind ``text``, the frame's stop token not included.
        latency_s: Seconds from the frame's arrival at the engine to its last token.
        text_tokens: Text tokens in the stream's KV cache after this frame.
        truncated: True if the per-frame token limit, or a further prompt, ended the words instead of the stop
            token.
        late_s: Seconds by which the last token came after the frame's deadline; 0 where it was in time.
        prompt: The viewer's further prompt that the words answer; ``None``: they are about a new frame.
        prompt_tokens: Text tokens read before its words and since the caption before, the query's included.
        image_tokens: The frame's; 0 for an answer.
    """

    timestamp: float
    text: str
    token_ids: tuple[int, ...]
    latency_s: float
    text_tokens: int
    truncated: bool = False
    late_s: float = 0.0
    prompt: str | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a stream is captioned.

    Attributes:
        query: The viewer's request; empty for none.
        max_tokens_per_frame: Upper bound on the tokens generated after one frame; a caption that it cuts off
            is marked ``truncated``.
        max_tokens_per_prompt: The same for the answer to a further prompt in the middle of the stream.
        sampling: Sampling settings; greedy by default. ``max_new_tokens`` and ``stop`` apply to answers only.
        bounds: Bounds of the text KV, with which the stream never ends. By default those of
            :meth:`casa_core.decoding.bounds.TextBounds.within`, and none for a model whose text KV cannot
            be bounded. ``None``: until the context is full.
        deadline_s: When a frame's words are due after it came, seconds: two frames per second by default.
        model: As a :class:`GenerationRequest`'s.
    """

    query: str = ""
    max_tokens_per_frame: int = TOKENS_PER_FRAME
    max_tokens_per_prompt: int = 64
    sampling: SamplingParams = field(default_factory=SamplingParams)
    bounds: TextBounds | Literal["default"] | None = "default"
    deadline_s: float = 0.5
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("max_tokens_per_frame", "max_tokens_per_prompt"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name}` is {getattr(self, name)}.",
                    "A caption has at least one token, or the one that ends it.",
                    f"Set `{name}` to 1 or more.",
                )
        if not self.deadline_s > 0:  # NaN too
            raise ConfigError(f"`deadline_s` is {self.deadline_s}.", "It is a time.", "Set it above 0.")
