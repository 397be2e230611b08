"""A hand-written engine that is deterministic, looks at the pixels, and can be made to fail or to be slow.

Its answers name what it saw, so that a test notices a mixed-up image, session or batch.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casa_core.engine.events import Event, Failed, FrameDropped, FrameRefused, Outcome, Overloaded
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    StreamSettings,
    TokenLogprob,
)
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.engine.settings import EngineSettings
from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.media.decode import decode_image
from casa_core.media.limits import MAX_PIXELS
from casa_core.types import Image, Text

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 60, 220),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "yellow": (230, 220, 30),
}
IMAGE_TOKENS = 64


def colour_of(image: FrameImage, max_pixels: int = MAX_PIXELS) -> str:
    """The name of the colour nearest to the picture's mean."""
    pixels = decode_image(image, max_pixels=max_pixels) if isinstance(image, bytes) else image
    mean = pixels.reshape(-1, 3).mean(axis=0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - np.array(COLOURS[name])).sum()))


@dataclass
class _Asked:
    """An answer of the fake: its words, and how many have been generated."""

    result: GenerationResult
    streamed: bool
    produced: int = 0


class FakeEngine:
    """Answers with the colours of the pictures, then the last user text, one word a step.

    Its streams caption a change of colour: `<query> <colour> <number of frames so far>`; silence otherwise.
    A text containing `explode` raises, one containing `too long` is refused as a user's error.

    Args:
        delay_s: How long a step takes.
        settings: As the real engine's; `queued_frames`, `waiting` and the slots are kept to.
    """

    def __init__(self, delay_s: float = 0.0, settings: EngineSettings | None = None) -> None:
        self.delay_s = delay_s
        self.settings = settings or EngineSettings(slots=64, waiting=64, queued_frames=8)
        self.how: dict[str, Any] = {}
        self.words_of: Callable[[str], list[str]] = str.split
        self.warm = False
        self.answers_questions = True
        self.sampling: list[SamplingParams] = []
        self.steps = 0
        self.most_together = 0
        self.threads: set[int] = set()
        self.cancelled = 0
        self.produced = 0
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked | Exception] = {}
        self._streams: dict[int, FakeStream] = {}
        self._dropped: list[Event] = []
        self._woken = threading.Event()

    @classmethod
    def from_pretrained(cls, folder: Path, settings: EngineSettings | None = None, **how: Any) -> FakeEngine:
        """As the real engine is loaded; the folder must exist. It keeps ``how`` it was."""
        if not Path(folder).is_dir():
            raise ConfigError(f"no checkpoint at {folder}")
        engine = cls(settings=settings)
        engine.how = how
        return engine

    def warm_up(self) -> float:
        """Nothing is compiled."""
        self.warm = True
        return 0.0

    @property
    def info(self) -> dict[str, Any]:
        return {"blind": False}

    @property
    def open_sessions(self) -> int:
        return len(self._streams)

    @property
    def open_answers(self) -> int:
        return len(self._asked)

    def current_load(self) -> LoadSnapshot:
        self._enter()
        return LoadSnapshot(
            slots=self.settings.slots,
            answers=len(self._asked),
            answers_waiting=max(len(self._asked) - self.settings.answer_slots, 0),
            streams=len(self._streams),
            frames_waiting=sum(len(stream.waiting) for stream in self._streams.values()),
            steps=self.steps,
            tokens=self.produced,
        )

    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
        self._enter()
        self.sampling.append(request.sampling)
        if len(self._asked) >= self.settings.answer_slots + self.settings.waiting:
            raise Overloaded("Too many wait.", "The fake is small.", 2.0)
        number = next(self._numbers)
        try:
            self._asked[number] = _Asked(self._result(request), streamed)
        except Exception as error:
            self._asked[number] = error
        return number

    def open_stream(self, settings: StreamSettings | None = None) -> int:
        self._enter()
        number = next(self._numbers)
        self._streams[number] = FakeStream(settings or StreamSettings())
        return number

    def push_frame(
        self, number: int, image: FrameImage | None, timestamp: float, *, due: float | None = None
    ) -> None:
        self._enter()
        stream = self._streams[number]
        if len(stream.waiting) >= self.settings.queued_frames:
            self._dropped.append(Event(number, FrameDropped(stream.waiting.popleft()[1])))
        assert image is not None
        stream.waiting.append((image, timestamp))

    def prompt(self, number: int, query: str) -> None:
        self._enter()
        if query == "too long":
            raise DataError("the question is too long", "it has 9000 tokens", "shorten it")
        self._streams[number].prompts.append(query)

    def transcript(self, number: int) -> Transcript:
        self._enter()
        return self._streams[number].transcript()

    def depart(self, number: int) -> tuple[SavedSession, list[Outcome]]:
        """Exact: what the stream has seen is in it. A transcript forgets the number of frames."""
        transcript = self._streams[number].transcript()
        mine = [event.outcome for event in self._dropped if event.sequence == number]
        self._dropped = [event for event in self._dropped if event.sequence != number]
        seen = self._streams[number].seen
        self.cancel(number)
        saved = SavedSession(identity={"seen": seen}, transcript=transcript, sequence=None, sampler={})  # type: ignore[arg-type]
        return saved, mine

    def restore(self, saved: SavedSession, settings: StreamSettings | None = None) -> int:
        number = self.replay(saved.transcript, settings)
        self._streams[number].seen = saved.identity["seen"]
        return number

    def replay(self, transcript: Transcript, settings: StreamSettings | None = None) -> int:
        own = replace(
            settings or StreamSettings(),
            query=transcript.query,
            max_tokens_per_frame=transcript.max_tokens_per_frame,
        )
        number = self.open_stream(own)
        self._streams[number].go_on(transcript)
        return number

    def cancel(self, number: int) -> None:
        self._enter()
        self.cancelled += number in self._asked
        self._asked.pop(number, None)
        self._streams.pop(number, None)

    def step(self) -> list[Event]:
        self._enter()
        time.sleep(self.delay_s)
        self.steps += 1
        events, self._dropped = self._dropped, []
        together = dict(itertools.islice(self._asked.items(), self.settings.answer_slots))
        self.most_together = max(self.most_together, len(together))
        for number, asked in together.items():
            events += [Event(number, outcome) for outcome in self._advance(number, asked)]
        for number, stream in list(self._streams.items()):
            if stream.prompts and self.answers_questions:
                events.append(Event(number, stream.answer()))
            elif stream.waiting:
                events.append(Event(number, stream.caption(self.settings.max_pixels)))
                if isinstance(events[-1].outcome, Failed):
                    del self._streams[number]
        return events

    def wait(self, timeout_s: float | None = None, *, until: Callable[[], bool] | None = None) -> bool:
        self._woken.clear()
        busy = (
            self._asked
            or self._dropped
            or any(one.waiting or (one.prompts and self.answers_questions) for one in self._streams.values())
        )
        return bool(busy) or (until is not None and until()) or self._woken.wait(timeout_s)

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._streams.clear()

    def _enter(self) -> None:
        self.threads.add(threading.get_ident())

    def _advance(self, number: int, asked: _Asked | Exception) -> list[Outcome]:
        if isinstance(asked, Exception):
            del self._asked[number]
            return [Failed(asked)]
        words = asked.result.text.split(" ")
        word = words[asked.produced]
        if word == "midway!" and asked.streamed:
            del self._asked[number]
            return [Failed(RuntimeError("the engine broke in the middle"))]
        self.produced += 1
        asked.produced += 1
        last = asked.produced == len(words)
        outcomes: list[Outcome] = []
        if asked.streamed:
            outcomes.append(
                GenerationDelta(
                    text=word if asked.produced == 1 else f" {word}",
                    finish_reason=asked.result.finish_reason if last else None,
                    prompt_tokens=asked.result.prompt_tokens,
                    image_tokens=asked.result.image_tokens,
                    completion_tokens=asked.produced if last else 0,  # as the real engine's
                    logprobs=asked.result.logprobs[asked.produced - 1 : asked.produced],
                )
            )
        if last:
            del self._asked[number]
            outcomes.append(asked.result)
        return outcomes

    def _result(self, request: GenerationRequest) -> GenerationResult:
        texts = [part.text for part in request.sample.parts if isinstance(part, Text)]
        pictures = [part.data for part in request.sample.parts if isinstance(part, Image)]
        question = texts[-1] if texts else ""
        if "explode" in question:
            raise RuntimeError("the engine exploded, and this text must not reach the client")
        if "too long" in question:
            raise ConfigError("the conversation is too long", "it has 9000 tokens", "shorten it")
        words = [*_colours([data for data in pictures if data is not None]), *self.words_of(question)]
        if request.sampling.temperature > 0:
            words.append(f"seed={request.sampling.seed}")
        for stop in request.sampling.stop:
            words = " ".join(words).split(stop)[0].split()
        kept = words[: request.sampling.max_new_tokens]
        return GenerationResult(
            request_id=request.request_id,
            text=" ".join(kept),
            token_ids=tuple(range(len(kept))),
            finish_reason="stop" if kept == words else "length",
            prompt_tokens=sum(len(text.split()) for text in texts),
            image_tokens=IMAGE_TOKENS * len(pictures),
            completion_tokens=len(kept),
            logprobs=tuple(_logprobs(kept, request.sampling.logprobs)),
        )


class NamedFake(FakeEngine):
    """A fake whose words begin with its checkpoint's name and its process."""

    @classmethod
    def from_pretrained(cls, folder: Path, settings: EngineSettings | None = None, **how: Any) -> FakeEngine:
        engine = super().from_pretrained(folder, settings, **how)
        engine.words_of = lambda question: [f"{Path(folder).name}@{os.getpid()}", *question.split()]
        return engine

    def step(self) -> list[Event]:
        return [replace(event, outcome=self._named(event.outcome)) for event in super().step()]

    def _named(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, CaptionEvent):
            return outcome
        return replace(outcome, text=" ".join([*self.words_of(""), outcome.text]))


def _colours(pictures: list[bytes]) -> Iterator[str]:
    for number, data in enumerate(pictures):
        try:
            yield colour_of(data)
        except MediaError as error:
            error.image = number
            raise


def _logprobs(words: list[str], most: int | None) -> Iterator[TokenLogprob]:
    """The n-th word has -n; the likeliest are it and made-up ones."""
    for number, word in enumerate(words if most is not None else []):
        top = [TokenLogprob(other, -float(other), f"{word}{other}") for other in range(most or 0)]
        yield TokenLogprob(number, -float(number), word, tuple(top))


class FakeStream:
    """Captions a change of colour."""

    def __init__(self, settings: StreamSettings) -> None:
        self.waiting: deque[tuple[FrameImage, float]] = deque()
        self.prompts: list[str] = []
        self._query, self._limit = settings.query, settings.max_tokens_per_frame
        self._last = ""
        self._frames, self._time = 0, 0.0
        self._text_tokens = len(self._query.split())
        self._picture: bytes | None = None

    @property
    def seen(self) -> str:
        """Everything that a transcript does not hold."""
        return json.dumps([self._frames, self._last])

    @seen.setter
    def seen(self, seen: str) -> None:
        self._frames, self._last = json.loads(seen)

    def transcript(self) -> Transcript:
        return Transcript(
            query=self._query,
            max_tokens_per_frame=self._limit,
            ids=tuple(range(self._text_tokens)),
            pending=(),
            timestamp=self._time,
            frame=self._picture,
            frame_at=0,
            prompts=tuple(self.prompts),
        )

    def go_on(self, transcript: Transcript) -> None:
        """From the text and the latest picture; how many there were is forgotten."""
        self._time, self._text_tokens = transcript.timestamp, len(transcript.ids)
        self.prompts = list(transcript.prompts)
        self._last = colour_of(transcript.frame) if transcript.frame else ""

    def answer(self) -> Outcome:
        """The question and the colour of the latest frame."""
        words = [*(query := self.prompts.pop(0)).split(), self._last or "nothing"]
        return CaptionEvent(
            timestamp=self._time,
            text=" ".join(words),
            token_ids=tuple(range(len(words))),
            latency_s=0.0,
            text_tokens=self._text_tokens,
            prompt=query,
        )

    def caption(self, max_pixels: int) -> Outcome:
        """What becomes of the oldest frame."""
        image, timestamp = self.waiting.popleft()
        if self._query == "explode":
            error = RuntimeError("the engine exploded, and this text must not reach the client")
            return Failed(error)
        if self._query == "short memory" and self._frames == 2:
            error = DataError("the stream's text has reached the context", "8 tokens", "open a new session")
            return FrameRefused(timestamp, error)
        started = time.perf_counter()
        try:
            colour = colour_of(image, max_pixels)
        except MediaError as error:
            return FrameRefused(timestamp, error)
        self._frames, self._time = self._frames + 1, timestamp
        self._picture = image if isinstance(image, bytes) else None
        words = [] if colour == self._last else [*self._query.split(), colour, str(self._frames)]
        self._last = colour
        kept = words[: self._limit]
        self._text_tokens += len(kept) + 1
        return CaptionEvent(
            timestamp=timestamp,
            text=" ".join(kept),
            token_ids=tuple(range(len(kept))),
            latency_s=time.perf_counter() - started,
            text_tokens=self._text_tokens,
            truncated=len(kept) < len(words),
        )
