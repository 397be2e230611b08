"""One live stream, then one answer, on an otherwise idle engine: how long each thing takes.

python -m benchmarks.engine.latency [--model CHECKPOINT --frames 200 --words 8]

Beside ours stand MOSS-VL's own figures: another model (11 B in BF16, one H200), so that only the last column
compares engines: the share of the hardware's floor that a decoding step reaches. Frames come one after
another, each when the words about the last are there. Every caption and every answer has the same length, as
the stop tokens are forbidden.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.engine.common import (
    QUESTION,
    Check,
    Floor,
    Subject,
    conclude,
    load_subject,
    measure_floor,
    milliseconds,
    read_engine_options,
    unseen_frames,
)
from benchmarks.measure import table
from casa_core.engine.engine import Engine
from casa_core.engine.requests import CaptionEvent, GenerationResult

FIRST, FRAME, PROMPT, CAPTION = (
    "first prefill",
    "frame extend",
    "prompt to first token",
    "frame to last token",
)
STREAM_TOKEN, TTFT, ANSWER_TOKEN = (
    "per token of a caption",
    "answer: time to first token",
    "answer: per token",
)
MOSS_VL = {
    FIRST: "42.6 mean",
    FRAME: "89 mean, 130 P95",
    PROMPT: "33.6 mean",
    STREAM_TOKEN: "11.1 (90.3 tokens/s)",
}
"""Milliseconds, MOSS-VL's own figures (arXiv 2608.15045), one stream."""


@dataclass(slots=True)
class Times:
    """Seconds of everything measured, by its name."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        """Add one."""
        self.seconds.setdefault(name, []).append(seconds)

    def percentile(self, name: str, percent: float) -> float:
        """One of them."""
        return float(np.percentile(self.seconds[name], percent))


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_engine_options(
        __doc__,
        arguments,
        frames=(200, "of the stream"),
        words=(8, "tokens of a caption"),
        new=(64, "tokens of an answer"),
        rounds=(20, "answers, further prompts and fresh streams"),
        deadline=(0.5, "seconds from a frame to its last word"),
        floor=(0.0, "least share of the floor that decoding must reach"),
    )
    subject, times = load_subject(options), Times()
    engine = subject.engine(slots=2, answer_slots=1, threads=True)
    floor, first = measure_floor(subject), FirstToken(engine)
    for measured in (Times(), times):  # the first round warms up
        _streams(subject, engine, first, measured, options)
        _answers(subject, engine, measured, options)
    engine.close()
    again = measure_floor(subject)
    floor = min(floor, again, key=lambda one: one.seconds)
    share = floor.seconds / times.percentile(ANSWER_TOKEN, 50)
    late = times.percentile(CAPTION, 95)
    checks = [
        Check(
            f"P95 from frame to last word is within {options.deadline} s",
            late <= options.deadline,
            f"{late:.3f} s",
        ),
        Check(f"decoding reaches {options.floor:.0%} of its floor", share >= options.floor, f"{share:.0%}"),
    ]
    payload = {
        "seconds": {
            name: {
                "mean": float(np.mean(all)),
                "p50": times.percentile(name, 50),
                "p95": times.percentile(name, 95),
            }
            for name, all in times.seconds.items()
        },
        "floor": {"bytes": floor.bytes, "seconds": floor.seconds, "share": share},
        "moss_vl_ms": MOSS_VL,
    }
    text = _report(subject, times, floor)
    return conclude("latency", "One stream and one answer", options, payload, text, checks)


class FirstToken:
    """Notes when the first token after a frame or a prompt is chosen, in the middle of a step."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.at = engine, 0.0
        self._read = engine._steps.read_turns
        engine._steps.read_turns = self._note

    def _note(self) -> None:
        before = self._engine.load.tokens
        self._read()
        if self._engine.load.tokens > before:
            self.at = time.perf_counter()


def _streams(
    subject: Subject, engine: Engine, first: FirstToken, times: Times, options: argparse.Namespace
) -> None:
    frames = unseen_frames(subject, engine)
    settings = subject.stream(options.words, max_tokens_per_prompt=options.words)
    for _ in range(options.rounds):
        began = time.perf_counter()
        number = engine.open_stream(settings)
        engine.push_frame(number, next(frames), 0.0)
        _caption(engine)
        times.add(FIRST, first.at - began)
        engine.cancel(number)
    number = engine.open_stream(settings)
    every = max(options.frames // options.rounds, 1)
    for at in range(options.frames):
        began = time.perf_counter()
        engine.push_frame(number, next(frames), at / 2)
        last = _caption(engine)
        times.add(FRAME, first.at - began)
        times.add(CAPTION, last - began)
        if options.words > 1:
            times.add(STREAM_TOKEN, (last - first.at) / (options.words - 1))
        if at % every == every - 1:
            began = time.perf_counter()
            engine.prompt(number, QUESTION)
            _caption(engine)
            times.add(PROMPT, first.at - began)
    engine.cancel(number)


def _caption(engine: Engine) -> float:
    """When the next caption is there."""
    while True:
        outcomes = [event.outcome for event in engine.step()]
        if any(isinstance(outcome, CaptionEvent) for outcome in outcomes):
            return time.perf_counter()
        assert not outcomes, outcomes
        engine.wait(1.0)


def _answers(subject: Subject, engine: Engine, times: Times, options: argparse.Namespace) -> None:
    frames, load = unseen_frames(subject, engine), engine.load
    for _ in range(options.rounds):
        before, came = load.tokens, list[tuple[float, int]]()
        began = time.perf_counter()
        engine.submit(subject.question(next(frames), options.new), streamed=True)
        ended = False
        while not ended:
            engine.wait(1.0)
            outcomes = [event.outcome for event in engine.step()]
            ended = any(isinstance(outcome, GenerationResult) for outcome in outcomes)
            if load.tokens > before:
                came.append((time.perf_counter(), load.tokens - before))
        # The step that reads the prompt's end also decodes a token.
        (first, tokens), (last, all_tokens) = came[0], came[-1]
        times.add(TTFT, first - began)
        times.add(ANSWER_TOKEN, (last - first) / max(all_tokens - tokens, 1))


def _report(subject: Subject, times: Times, floor: Floor) -> str:
    rows: list[list[str]] = []
    for name in (FIRST, FRAME, CAPTION, PROMPT, STREAM_TOKEN, TTFT, ANSWER_TOKEN):
        if name not in times.seconds:
            continue
        middle = times.percentile(name, 50)
        share = f"{floor.seconds / middle:.0%}" if name in (STREAM_TOKEN, ANSWER_TOKEN) else ""
        mean = milliseconds(float(np.mean(times.seconds[name])))
        rows.append(
            [
                name,
                mean,
                milliseconds(middle),
                milliseconds(times.percentile(name, 95)),
                share,
                MOSS_VL.get(name, ""),
            ]
        )
    header = ["ms", "mean", "P50", "P95", "of the floor (P50)", "MOSS-VL 11 B on an H200 (its figures)"]
    return (
        f"{subject.describe()}\n\n{table(header, rows)}\n"
        f"Floor of a token: {floor.bytes / 1e6:.1f} MB of weights, which a matrix-vector product reads in "
        f"{milliseconds(floor.seconds)} ms ({floor.bytes / floor.seconds / 1e9:.1f} GB/s). First prefill: a "
        "fresh stream's query and first frame, to the first token. Frame extend: from the frame (a JPEG "
        "file) to the first token about it.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
