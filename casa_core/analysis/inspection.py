"""One question about a picture, or one clip watched live: what is said, where it looks, what masking changes.

The engine answers as it always does; the analyses then read the whole conversation again, in one forward.
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
class Said:
    """A token that the model chose.

    Attributes:
        place: Its index in the conversation; it was chosen at the token before.
        text: Its text, or what it means.
        picture: The latest image at that point, by number.
    """

    place: int
    text: str
    picture: int


@dataclass(frozen=True, slots=True)
class MaskedAnswer:
    """What is said while some attention is masked.

    Attributes:
        what: What is masked; ``None`` for nothing.
        text: The answer, or the words about a clip.
        log_likelihood: Of what is said *without* masking, nats a token: it moves before the words do.
    """

    what: Masking | None
    text: str
    log_likelihood: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One conversation, examined.

    Attributes:
        name: Of the picture or clip.
        question: What was asked; may be empty for a clip.
        pictures: The picture, or the frames, as decoded.
        answer: What was said.
        sequence: The whole conversation.
        said: The tokens of the answer, stop tokens among them.
        maps: Where each of them was looked for, in the order of ``said``; ``None`` where the model cannot be
            watched.
        masked: Nothing masked first, then each masking; empty where the model cannot be masked.
    """

    name: str
    question: str
    pictures: list[Rgb]
    answer: str
    sequence: TokenChunk
    said: list[Said]
    maps: AttentionMaps | None
    masked: list[MaskedAnswer]


@dataclass(frozen=True, slots=True)
class Examiner:
    """Puts conversations to one engine.

    Attributes:
        engine: The checkpoint.
        seed: Of random masking.
        max_new_tokens: Bound on an answer, and on the words about a frame.
    """

    engine: Engine
    seed: int = 0
    max_new_tokens: int = 32

    @property
    def unwatched(self) -> ConfigError | None:
        """Why this model's attention to pictures cannot be shown, if so."""
        return _blindness(self.engine) or watching_refusal(self.engine.model)

    @property
    def unmasked(self) -> ConfigError | None:
        """Why nothing can be masked in this model, if so."""
        return _blindness(self.engine) or masking_refusal(self.engine.model)

    def question(self, picture: bytes, question: str, name: str) -> Examined:
        """Ask about a picture.

        Raises:
            MediaError: If it cannot be decoded.
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
        said = [
            Said(start + n, END if token == processor.end_id else self._text(token), 0)
            for n, token in enumerate(ids)
        ]
        rgb = decode_image(picture)
        return self._examined(name, question, [rgb], answer, answered(prompt, ids), said, lambda: ask()[0])

    def clip(self, frames: Sequence[bytes], query: str, name: str) -> Examined:
        """Watch frames as a live stream.

        Raises:
            MediaError: If a frame cannot be decoded.
            DataError: If the stream's text does not fit the model's context.
        """
        events = self._watch(frames, query)
        sequence, said = self._transcript(frames, query, events)
        pictures = [decode_image(frame) for frame in frames]
        return self._examined(
            name,
            query,
            pictures,
            _spoken(events),
            sequence,
            said,
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
    ) -> tuple[TokenChunk, list[Said]]:
        """The stream as one conversation, token for token as the session read it, and what was chosen."""
        processor = self.engine.processor
        ids, positions, said = processor.stream_prompt(query), [], []
        for number, event in enumerate(events):
            ids += [*processor.frame_prefix_ids, processor.image_id]
            positions.append(len(ids) - 1)
            said += [Said(len(ids) + n, self._text(token), number) for n, token in enumerate(event.token_ids)]
            ids += [*event.token_ids, processor.frame_end_id]
            if not event.truncated:
                said.append(Said(len(ids) - 1, NEXT_FRAME if event.token_ids else SILENT, number))
        if self.engine.model.config.images_withheld:
            return TokenChunk(ids), said
        images = [prepare_image(decode_image(frame), processor, frame=True) for frame in frames]
        return image_chunk(ids, positions, images), said

    def _examined(
        self,
        name: str,
        question: str,
        pictures: list[Rgb],
        answer: str,
        sequence: TokenChunk,
        said: list[Said],
        again: Callable[[], str],
    ) -> Examined:
        model, chosen = self.engine.model, [one.place for one in said]
        maps = None
        if self.unwatched is None:
            maps = attention_maps(model, sequence, [place - 1 for place in chosen])
        masked = []
        if self.unmasked is None:
            masked.append(MaskedAnswer(None, answer, log_likelihood(model, sequence, chosen)))
            for what in MASKINGS:
                with masked_attention(model, what, self.seed):
                    masked.append(MaskedAnswer(what, again(), log_likelihood(model, sequence, chosen)))
        return Examined(
            name=name,
            question=question,
            pictures=pictures,
            answer=answer,
            sequence=sequence,
            said=said,
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
        "the model is a blind baseline",
        "it was trained with every image left out, and is shown none",
        "inspect the model it was trained beside",
    )
