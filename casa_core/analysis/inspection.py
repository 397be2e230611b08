"""Inspection of one answer or live clip: the tokens, their attention maps, and the effect of masking.

The engine answers as usual; the analyses then read the whole conversation again, in one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casa_core.analysis.forward import answered, log_likelihood
from casa_core.analysis.maps import AttentionMaps, attention_maps
from casa_core.analysis.masking import MASKINGS, Masking, masked_attention, masking_refusal
from casa_core.analysis.probe import watching_refusal
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.inputs import image_chunk, prepare_image, prompt_chunk
from casa_core.engine.requests import CaptionEvent, GenerationRequest, SamplingParams
from casa_core.errors import ConfigError
from casa_core.media.decode import Rgb, decode_image
from casa_core.types import Image, Sample, Text

END, NEXT_FRAME, SILENT = "(end)", "(next frame)", "(silent)"
"""How a stop token is shown."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token that the model generated.

    Attributes:
        index: Its index in the conversation; it was chosen at the token before.
        text: Its text, or what it means.
        picture: Number of the latest image before it.
    """

    index: int
    text: str
    picture: int


@dataclass(frozen=True, slots=True)
class MaskedAnswer:
    """The answer while some attention is masked.

    Attributes:
        what: What is masked; ``None`` for nothing.
        text: The answer, or the words about a clip.
        log_likelihood: Mean log-likelihood of the answer given *without* masking, nats per token; it changes
            before the words do.
    """

    what: Masking | None
    text: str
    log_likelihood: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedSample:
    """One inspected conversation.

    Attributes:
        name: Name of the picture or clip.
        question: The question; may be empty for a clip.
        pictures: Pixels of the picture, or of the frames.
        answer: The generated text.
        sequence: The whole conversation.
        generated: The tokens of the answer, stop tokens included.
        maps: Attention maps in the order of ``generated``; ``None`` if the model has no maps.
        masked: Nothing masked first, then each masking; empty if the model cannot be masked.
    """

    name: str
    question: str
    pictures: list[Rgb]
    answer: str
    sequence: TokenChunk
    generated: list[GeneratedToken]
    maps: AttentionMaps | None
    masked: list[MaskedAnswer]


@dataclass(frozen=True, slots=True)
class Inspector:
    """Inspects answers and live captions of one engine.

    Attributes:
        engine: The checkpoint's.
        seed: Seed of random masking.
        max_new_tokens: Upper bound on the tokens of an answer, or of one frame's caption.
    """

    engine: Engine
    seed: int = 0
    max_new_tokens: int = 32

    @property
    def no_maps(self) -> ConfigError | None:
        """Why this model has no attention maps; ``None`` if it has."""
        return _blindness(self.engine) or watching_refusal(self.engine.model)

    @property
    def no_masking(self) -> ConfigError | None:
        """Why nothing can be masked in this model; ``None`` if it can."""
        return _blindness(self.engine) or masking_refusal(self.engine.model)

    def question(self, picture: bytes, question: str, name: str) -> InspectedSample:
        """Ask a question about a picture and inspect the answer.

        Raises:
            MediaError: If the picture cannot be decoded.
            DataError: If question and answer do not fit the model's context.
        """
        model, processor = self.engine.model, self.engine.processor
        parts = (Image(data=picture), Text(role="user", text=question))
        sample = Sample(source="inspect", sample_id=name, parts=parts)
        sampling = SamplingParams(max_new_tokens=self.max_new_tokens)
        request = GenerationRequest(sample=sample, sampling=sampling)

        def ask() -> tuple[str, list[int]]:
            result = self.engine.generate([request])[0]
            ended = [processor.end_id] if result.finish_reason == "stop" else []
            return result.text, [*result.token_ids, *ended]

        answer, ids = ask()
        prompt = prompt_chunk(sample, processor, images_withheld=model.config.images_withheld)
        start = len(prompt.ids)
        generated = [
            GeneratedToken(start + n, END if token == processor.end_id else self._text(token), 0)
            for n, token in enumerate(ids)
        ]
        rgb = decode_image(picture)
        return self._inspected(
            name, question, [rgb], answer, answered(prompt, ids), generated, lambda: ask()[0]
        )

    def clip(self, frames: Sequence[bytes], query: str, name: str) -> InspectedSample:
        """Caption frames as a live stream and inspect the captions.

        Raises:
            MediaError: If a frame cannot be decoded.
            DataError: If the stream's text does not fit the model's context.
        """
        events = self._watch(frames, query)
        sequence, generated = self._transcript(frames, query, events)
        pictures = [decode_image(frame) for frame in frames]
        return self._inspected(
            name,
            query,
            pictures,
            _spoken(events),
            sequence,
            generated,
            lambda: _spoken(self._watch(frames, query)),
        )

    def _watch(self, frames: Sequence[bytes], query: str) -> list[CaptionEvent]:
        session = self.engine.open_session(query, max_tokens_per_frame=self.max_new_tokens)
        blind = self.engine.model.config.images_withheld
        events = [session.push_frame(None if blind else frame, float(n)) for n, frame in enumerate(frames)]
        session.close()
        return events

    def _transcript(
        self, frames: Sequence[bytes], query: str, events: Sequence[CaptionEvent]
    ) -> tuple[TokenChunk, list[GeneratedToken]]:
        """The stream as one conversation, exactly as the session read it, and the generated tokens."""
        processor = self.engine.processor
        ids, positions, generated = processor.stream_prompt(query), [], []
        for number, event in enumerate(events):
            ids += [*processor.frame_prefix_ids, processor.image_id]
            positions.append(len(ids) - 1)
            generated += [
                GeneratedToken(len(ids) + n, self._text(token), number)
                for n, token in enumerate(event.token_ids)
            ]
            ids += [*event.token_ids, processor.frame_end_id]
            if not event.truncated:
                generated.append(
                    GeneratedToken(len(ids) - 1, NEXT_FRAME if event.token_ids else SILENT, number)
                )
        if self.engine.model.config.images_withheld:
            return TokenChunk(ids), generated
        images = [prepare_image(decode_image(frame), processor, frame=True) for frame in frames]
        return image_chunk(ids, positions, images), generated

    def _inspected(
        self,
        name: str,
        question: str,
        pictures: list[Rgb],
        answer: str,
        sequence: TokenChunk,
        generated: list[GeneratedToken],
        again: Callable[[], str],
    ) -> InspectedSample:
        model, chosen = self.engine.model, [token.index for token in generated]
        maps = None
        if self.no_maps is None:
            maps = attention_maps(model, sequence, [index - 1 for index in chosen])
        masked = []
        if self.no_masking is None:
            masked.append(MaskedAnswer(None, answer, log_likelihood(model, sequence, chosen)))
            for what in MASKINGS:
                with masked_attention(model, what, self.seed):
                    masked.append(MaskedAnswer(what, again(), log_likelihood(model, sequence, chosen)))
        return InspectedSample(
            name=name,
            question=question,
            pictures=pictures,
            answer=answer,
            sequence=sequence,
            generated=generated,
            maps=maps,
            masked=masked,
        )

    def _text(self, token: int) -> str:
        return self.engine.processor.tokenizer.decode([token])


def _spoken(events: Sequence[CaptionEvent]) -> str:
    return " ".join(event.text for event in events if event.text)


def _blindness(engine: Engine) -> ConfigError | None:
    if not engine.model.config.images_withheld:
        return None
    return ConfigError(
        "The model is a blind baseline.",
        "It was trained with every image left out, and is shown none.",
        "Inspect the model that it is the baseline of.",
    )
