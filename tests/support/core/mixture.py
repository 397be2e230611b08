"""Random mixtures of answers and live streams on an engine's loop, and what each of them says alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from casa_core.decoding.bounds import TextBounds
from casa_core.engine.engine import Engine
from casa_core.engine.events import Event, FrameDropped
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    StreamSettings,
)
from casa_core.types import Image, Part, Sample, Text
from tests.support.core.engine import picture, png

SHAPES = [(24, 32), (32, 16), (16, 16)]
QUERIES = ["describe it live", "", "what is this", "a red circle what is this live"]
LIMIT = 4
"""Tokens of a caption, at most."""


@dataclass(slots=True)
class Watched:
    """One answer or stream of a mixture, and what came out of it.

    Attributes:
        engine, number: Where it is now.
        request: Of an answer; ``None`` for a stream.
        settings: Of a stream.
        pushed: Time of each frame pushed → the seed of its picture.
        captions: In order; the dropped ones are not among them.
        ended: It was cancelled, or is finished.
    """

    engine: Engine
    number: int
    request: GenerationRequest | None = None
    settings: StreamSettings | None = None
    pushed: dict[float, int] = field(default_factory=dict)
    captions: list[CaptionEvent] = field(default_factory=list)
    dropped: int = 0
    moves: int = 0
    result: GenerationResult | None = None
    ended: bool = False


def shown(seed: int) -> tuple[int, int, int]:
    """Seed, height and width of a picture."""
    return (seed, *SHAPES[seed % len(SHAPES)])


class Mixture:
    """Answers and streams that join, leave, are asked more, are moved and cancelled at random.

    Args:
        engines: Streams are moved between them; of one model.
        bounds: Bounds of some streams' text KV; ``None`` where the model's cannot be bounded.
    """

    def __init__(self, engines: list[Engine], chance: random.Random, bounds: TextBounds | None) -> None:
        self.engines, self.chance, self.bounds = engines, chance, bounds
        self.all: list[Watched] = []

    def run(self, count: int) -> None:
        """Start ``count`` answers and streams over time, and let those end that are not cancelled."""
        while len(self.all) < count or self.busy:
            if len(self.all) < count and self.chance.random() < 0.5:
                self.join()
            for one in list(self.streams):
                self.disturb(one, joining=len(self.all) < count)
            if self.chance.random() < 0.03 and (running := [one for one in self.all if not one.ended]):
                self.cancel(self.chance.choice(running))
            self.step()
        for one in self.streams:
            self.cancel(one)

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self.engines)

    @property
    def streams(self) -> list[Watched]:
        return [one for one in self.all if one.settings is not None and not one.ended]

    def join(self) -> None:
        """An answer, or a stream where there is a slot for it."""
        chance, engine = self.chance, self.chance.choice(self.engines)
        sampling = SamplingParams(
            max_new_tokens=chance.randint(1, 8),
            temperature=chance.choice([0.0, 1.0]),
            seed=chance.randint(0, 99),
        )
        open_streams = sum(one.engine is engine for one in self.streams)
        if chance.random() < 0.5 or open_streams >= engine.settings.stream_slots:
            request = GenerationRequest(sample=self.conversation(), sampling=sampling)
            number = engine.submit(request, streamed=chance.random() < 0.5)
            self.all.append(Watched(engine, number, request=request))
            return
        settings = StreamSettings(
            query=chance.choice(QUERIES),
            max_tokens_per_frame=LIMIT,
            max_tokens_per_prompt=6,
            sampling=sampling,
            bounds=chance.choice([None, self.bounds]),
        )
        self.all.append(Watched(engine, engine.open_stream(settings), settings=settings))

    def conversation(self) -> Sample:
        """One of few beginnings, so that some are shared, with another end."""
        chance = self.chance
        parts: list[Part] = []
        for turn in range(chance.randint(1, 3)):
            if chance.random() < 0.6:
                parts.append(Image(data=png(*shown(chance.randint(0, 2)))))
            parts.append(Text(role="user", text="what is this red circle " * (3 + turn)))
            parts.append(Text(role="assistant", text=chance.choice(["a circle", "live"])))
        parts[-1] = Text(role="user", text=chance.choice(QUERIES[2:]))
        return Sample(source="test", sample_id="1", parts=tuple(parts))

    def disturb(self, one: Watched, *, joining: bool) -> None:
        """Push a frame or several, ask something, move or close a stream."""
        chance = self.chance
        assert one.settings is not None
        draw = chance.random()
        if len(one.pushed) >= 12 or not joining:
            if draw < 0.3:
                self.cancel(one)
        elif draw < 0.3:
            for _ in range(chance.choice([1, 1, 1, 5])):
                time = len(one.pushed) / 2
                one.pushed[time] = chance.randint(0, 20)
                one.engine.push_frame(one.number, picture(*shown(one.pushed[time])), time)
        elif draw < 0.36:
            one.engine.prompt(one.number, chance.choice(QUERIES[2:]))
        elif draw < 0.42:
            self.move(one)

    def move(self, one: Watched) -> None:
        """Save a stream and go on in a slot of another engine, or of the same."""
        target = self.chance.choice(self.engines)
        full = sum(other.engine is target for other in self.streams) >= target.settings.stream_slots
        if full and target is not one.engine:
            return
        saved = one.engine.save(one.number)
        self.take(one.engine, one.engine.take_events())  # what happened until then
        one.engine.cancel(one.number)
        one.engine, one.number = target, target.restore(saved)
        one.moves += 1

    def cancel(self, one: Watched) -> None:
        one.engine.cancel(one.number)
        one.ended = True

    def step(self) -> None:
        for engine in self.engines:
            self.take(engine, engine.step())

    def take(self, engine: Engine, events: list[Event]) -> None:
        for event in events:
            one = next(one for one in self.all if one.engine is engine and one.number == event.sequence)
            match event.outcome:
                case CaptionEvent() as caption:
                    one.captions.append(caption)
                case FrameDropped():
                    one.dropped += 1
                case GenerationResult() as result:
                    one.result, one.ended = result, True
                case _:
                    pass


def captions_of(events: list[Event]) -> list[CaptionEvent]:
    return [event.outcome for event in events if isinstance(event.outcome, CaptionEvent)]


def alone(one: Watched, engine: Callable[[], Engine]) -> None:
    """Ask an engine that does nothing else for the same, and compare all tokens.

    Args:
        engine: Makes a fresh engine of the same model.
    """
    if one.request is not None:
        if one.result is not None:
            assert engine().generate([one.request])[0].token_ids == one.result.token_ids
        return
    solitary = engine()
    number = solitary.open_stream(one.settings)
    for caption, following in zip(one.captions, [*one.captions, None][1:], strict=True):
        if caption.prompt is None:
            solitary.push_frame(number, picture(*shown(one.pushed[caption.timestamp])), caption.timestamp)
        elif not solitary.stream_state(number).prompts:
            solitary.prompt(number, caption.prompt)
        assert one.settings is not None
        limit = LIMIT if caption.prompt is None else one.settings.max_tokens_per_prompt
        heard: list[CaptionEvent] = []
        if caption.truncated and len(caption.token_ids) < limit:  # interrupted there by the next prompt
            while len(solitary.stream_state(number).words) < len(caption.token_ids):
                assert not solitary.step(), "it went on at this point"
            if following is None:  # it was cancelled then
                assert tuple(solitary.stream_state(number).words) == caption.token_ids
                return
            assert following.prompt is not None
            solitary.prompt(number, following.prompt)
            heard = captions_of(solitary.take_events())
        while not heard:
            heard = captions_of(solitary.step())
        assert (heard[0].token_ids, heard[0].prompt) == (caption.token_ids, caption.prompt)
        assert heard[0].text_tokens == caption.text_tokens
