"""Tokens of answers and streams that run together = tokens of each alone = transformers' ``generate``.

python -m benchmarks.engine.accuracy [--model CHECKPOINT --answers 48 --streams 16 --frames 12]

Greedy. All answers and all streams share one engine with more work than slots, with threads; then each runs
alone in an engine of one slot; then ``model.generate`` answers every question. Every stream is also asked a
further question between two of its frames. In fp32 not one token may differ; in other types the first
difference is reported, and ends in FAIL too.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.engine.common import (
    Check,
    Subject,
    conclude,
    encoded_frames,
    load_subject,
    read_engine_options,
)
from benchmarks.measure import table
from casa_core.engine.engine import Engine
from casa_core.engine.events import Failed, FrameDropped, FrameRefused
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    StreamSettings,
)
from casa_core.types import Image, Part, Sample, Text

QUESTIONS = ("what shape is in the image?", "is there a circle?", "what colour is the square?", "describe it")
Tokens = tuple[int, ...]


@dataclass(slots=True)
class Watched:
    """An answer, or a stream with what is pushed into it, and the tokens that came.

    Attributes:
        request: Of an answer; ``None`` for a stream.
        settings: Of a stream.
        script: Frames (bytes) and further prompts (text), each pushed when the words about the one before
            are there.
        tokens: The answer's, or of every caption.
    """

    request: GenerationRequest | None = None
    settings: StreamSettings | None = None
    script: tuple[bytes | str, ...] = ()
    tokens: list[Tokens] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_engine_options(
        __doc__,
        arguments,
        answers=48,
        streams=16,
        frames=(12, "of every stream"),
        new=(24, "tokens of an answer at most"),
        words=(6, "tokens of a caption at most"),
    )
    subject = load_subject(options)
    together = _mixture(subject, options.answers, options.streams, options.frames, options.new, options.words)
    engine = subject.engine(
        slots=max(options.streams + 4, 8), answer_slots=4, threads=True, prefill_tokens=128
    )
    run(engine, together)
    engine.close()
    alone = [Watched(one.request, one.settings, one.script) for one in together]
    for one in alone:
        run(subject.engine(slots=1, answer_slots=0, image_cache_tokens=0), [one])
    asked = [one for one in together if one.request is not None]
    theirs = [Watched(one.request, tokens=[_generated(subject, one.request)]) for one in asked if one.request]
    lone = [one for one in alone if one.request is not None]
    found = {
        "answers: together, alone": compare(asked, lone),
        "answers: alone, transformers' generate": compare(lone, theirs),
        "streams: together, alone": compare(
            [one for one in together if one.request is None], [one for one in alone if one.request is None]
        ),
    }
    rows = [[name, *one.values()] for name, one in found.items()]
    text = f"{subject.describe()}\n\n{table(['compared', *next(iter(found.values()))], rows)}"
    checks = [
        Check(f"{name}: every token the same", not one["differing"], f"{one['differing']} differ")
        for name, one in found.items()
    ]
    varied = len({one.tokens[0] for one in asked}) > 1
    checks.append(
        Check("the pictures and questions matter: not all answers are the same", varied, str(varied))
    )
    return conclude("accuracy", "Token equality", options, {"compared": found}, text, checks)


def _mixture(
    subject: Subject, answers: int, streams: int, frames: int, new: int, words: int
) -> list[Watched]:
    chance = random.Random(0)
    pictures = encoded_frames(subject.side, 64, seed=1)
    mixture: list[Watched] = []
    for number in range(max(answers, streams)):
        if number < streams:
            film = encoded_frames(subject.side, frames, seed=100 + number)
            query = chance.choice(["", "describe what you see live"])
            settings = subject.stream(words, query=query, sampling=SamplingParams())
            half = frames // 2
            script = (*film[:half], chance.choice(QUESTIONS), *film[half:])
            mixture.append(Watched(settings=settings, script=script))
        if number < answers:
            sampling = SamplingParams(max_new_tokens=chance.randint(max(new // 2, 1), new))
            sample = _conversation(chance, pictures)
            mixture.append(Watched(GenerationRequest(sample=sample, sampling=sampling)))
    return mixture


def _conversation(chance: random.Random, pictures: list[bytes]) -> Sample:
    """Of up to three turns, each about none, one or two pictures; some begin alike."""
    parts: list[Part] = []
    for turn in range(chance.randint(1, 3)):
        for _ in range(chance.choice([0, 1, 1, 2]) if turn else 1):
            parts.append(Image(data=pictures[chance.randrange(4 if turn == 0 else len(pictures))]))
        parts += [Text(role="user", text=chance.choice(QUESTIONS)), Text(role="assistant", text="circle")]
    return Sample(source="benchmark", sample_id="0", parts=tuple(parts[:-1]))


def run(engine: Engine, mixture: Sequence[Watched]) -> None:
    """Run all of them together, to their ends.

    Raises:
        Exception: With which one of them failed.
    """
    waiting, numbers = deque(mixture), dict[int, Watched]()
    left: dict[int, deque[bytes | str]] = {}
    while waiting or numbers:
        while waiting and _room(engine, waiting[0], len(left), len(numbers) - len(left)):
            one = waiting.popleft()
            if one.request is not None:
                numbers[engine.submit(one.request)] = one
                continue
            number = engine.open_stream(one.settings)
            numbers[number], left[number] = one, deque(one.script)
            _push(engine, number, left[number])
        for event in engine.step():
            one, outcome = numbers[event.sequence], event.outcome
            match outcome:
                case GenerationResult(token_ids=tokens):
                    one.tokens.append(tokens)
                    del numbers[event.sequence]
                case CaptionEvent(token_ids=tokens):
                    one.tokens.append(tokens)
                    if not _push(engine, event.sequence, left[event.sequence]):
                        engine.cancel(event.sequence)
                        del numbers[event.sequence], left[event.sequence]
                case Failed(error) | FrameRefused(_, error):
                    raise error
                case FrameDropped():
                    raise AssertionError("No frame is pushed before the words about the last one are there.")
                case _:
                    pass
        engine.wait(0.01)


def _room(engine: Engine, one: Watched, streams: int, answers: int) -> bool:
    if one.request is not None:
        return answers < engine.settings.waiting
    return streams < engine.settings.stream_slots


def _push(engine: Engine, number: int, script: deque[bytes | str]) -> bool:
    """The next of a script; false at its end."""
    if not script:
        return False
    following = script.popleft()
    if isinstance(following, str):
        engine.prompt(number, following)
    else:
        engine.push_frame(number, following, float(len(script)))
    return True


def _generated(subject: Subject, request: GenerationRequest) -> Tokens:
    """The answer of transformers' ``generate``, its end token left out as ours is."""
    inputs = subject.processor(request.sample).to(subject.model.device)
    settings: dict[str, Any] = {"max_new_tokens": request.sampling.max_new_tokens, "do_sample": False}
    whole = cast(Any, subject.model).generate(**inputs, **settings)[0].tolist()
    answer = whole[inputs["input_ids"].shape[1] :]
    return tuple(itertools.takewhile(lambda token: token != subject.processor.end_id, answer))


def compare(left: Sequence[Watched], right: Sequence[Watched]) -> dict[str, Any]:
    """How many tokens were compared, how many differ, and where the first difference is."""
    compared = differing = 0
    first = "none"
    for number, (mine, theirs) in enumerate(zip(left, right, strict=True)):
        assert len(mine.tokens) == len(theirs.tokens), "as many captions"
        for turn, pair in enumerate(zip(mine.tokens, theirs.tokens, strict=True)):
            for place, (a, b) in enumerate(itertools.zip_longest(*pair)):
                compared += 1
                differing += a != b
                if a != b and first == "none":
                    first = f"number {number}, turn {turn}, token {place}: {a} and {b}"
    return {"pairs": len(left), "tokens": compared, "differing": differing, "first difference": first}


if __name__ == "__main__":
    sys.exit(main())
