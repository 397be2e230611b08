"""Live streams at their own pace beside answers: how many are captioned on time, and what answers wait.

python -m benchmarks.engine.concurrency [--model CHECKPOINT --streams 1,2,4,8,16,32 --answers 8 --seconds 20]
python -m benchmarks.engine.concurrency --streams 32 --hold 32 --seconds 600 --warm-up 90 --disturb
python -m benchmarks.engine.concurrency --streams 1,2,4,8,16,32,64,128 --answers 0 --baseline

Frames come on an open-loop schedule, encoded, every one another picture. *On time*: all words of a frame
within ``--deadline`` of its arrival. A frame that newer ones replaced is dropped, and counted. *Underrun*: a
viewer has no words of the latest frames when they are due; *stall time* is how long that lasted.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image as PILImage

from benchmarks.engine.common import (
    QUESTION,
    Check,
    Subject,
    conclude,
    load_subject,
    milliseconds,
    read_engine_options,
    unseen_frames,
)
from benchmarks.engine.live_figures import Disturbance, Figures, disturbance, figures
from benchmarks.engine.one_at_a_time import OneAtATime
from benchmarks.engine.open_loop import Observed, Plan, Run
from benchmarks.measure import table
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Image, Part, Sample, Text

MOST_STREAMS = 512
"""The search for the largest number of streams ends here."""
ATTAINED = 0.99
"""Share of frames that must be on time for a number of streams to be held."""
BRIEF_S = 60.0
"""Seconds of the runs that others are compared with, at most."""
TIMES_IDLE, TIMES_FORMER = 3.0, 4.0
FLAT_BYTES = 100
"""Growth of memory, bytes per frame, below which it counts as flat though its interval is above 0."""
MOSS_VL = {1: (158, 59.0), 2: (234, 53.2), 4: (235, 47.8), 8: (402, 25.6), 16: (492, 10.7)}
"""Streams → frame P95 (ms) and tokens per second per stream at 1 frame per second: MOSS-VL's own figures
(11 B in BF16 on one H200, arXiv 2608.15045)."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_engine_options(
        __doc__,
        arguments,
        streams=("1,2,4,8,16,32", "numbers of streams, each in a run of its own"),
        hold=(0, "streams up to which every run must be on time; 0: none must"),
        answers=(8, "that run at any time"),
        fps=(2.0, "frames per second of a stream"),
        deadline=(0.5, "seconds from a frame to its last word"),
        words=(4, "tokens of a caption"),
        new=(32, "tokens of an answer"),
        seconds=(20.0, "of every run; of those it is compared with, a minute at most"),
        warm_up=(5.0, "seconds before it that do not count"),
        baseline=(False, "also the former way: one frame at a time"),
        disturb=(False, "also a run with a huge text, picture and conversation in the middle"),
    )
    subject = load_subject(options)
    levels = [int(count) for count in options.streams.split(",")]
    brief = min(options.seconds, BRIEF_S)
    idle = figures(*_run(subject, options, 0, 1, _batched, brief))
    together = idle
    if options.answers > 1:
        together = figures(*_run(subject, options, 0, options.answers, _batched, brief))
    runs = [_run(subject, options, count, options.answers, _batched, options.seconds) for count in levels]
    found = [figures(*run) for run in runs]
    checks = _checks(options, found, idle, together)
    payload: dict[str, Any] = {"idle": idle.plain(), "runs": [one.plain() for one in found]}
    payload["answers alone"] = together.plain()
    text = f"{subject.describe()}\n\n{_report(found, idle, together)}"
    if options.disturb:
        disturbed = disturbance(_disturbed(subject, options, levels[-1]))
        payload["disturbance"] = asdict(disturbed)
        text += f"\n{_told(disturbed)}"
        checks.append(
            Check(
                "a huge text, picture and conversation delay no P95 of frames by more than a step",
                disturbed.holds,
                f"{milliseconds(disturbed.before)} → {milliseconds(disturbed.during)} ms",
            )
        )
    if options.baseline:
        ways = {"one engine, one batch": _batched, "one at a time": _former}
        tried = {name: _search(subject, options, make) for name, make in ways.items()}
        payload["largest"] = {name: [one.plain() for one in runs] for name, runs in tried.items()}
        text += f"\n{_beside(tried)}"
        ours, former = (held(runs) for runs in tried.values())
        ratio = ours / max(former, 1)
        claim = f"at least {TIMES_FORMER:g} times the streams of one at a time"
        checks.append(Check(claim, ratio >= TIMES_FORMER, f"{ratio:.1f} times"))
    return conclude("concurrency", "Live streams beside answers", options, payload, text, checks)


def _search(
    subject: Subject, options: argparse.Namespace, make: Callable[[Subject, int, int], Any]
) -> list[Figures]:
    brief = min(options.seconds, BRIEF_S)
    return largest(
        lambda count: figures(*_run(subject, options, count, options.answers, make, brief)), MOST_STREAMS
    )


def _batched(subject: Subject, streams: int, answers: int) -> Any:
    return subject.engine(
        slots=streams + max(answers, 1) + 2,
        answer_slots=max(answers, 1) + 1,
        preallocate=True,
        threads=True,
    )


def _former(subject: Subject, streams: int, answers: int) -> Any:
    engine = subject.engine(
        slots=streams + 2,
        answer_slots=1,
        preallocate=True,
        threads=False,
        image_cache_tokens=0,
        encode_batch=1,
    )
    return OneAtATime(engine)


def _run(
    subject: Subject,
    options: argparse.Namespace,
    streams: int,
    answers: int,
    make: Callable[[Subject, int, int], Any],
    seconds: float,
    extra: Sequence[tuple[float, str, GenerationRequest]] = (),
) -> tuple[Plan, Observed]:
    loop = make(subject, streams, answers)
    engine = loop.engine if isinstance(loop, OneAtATime) else loop
    plan = Plan(
        streams=streams,
        fps=options.fps,
        deadline=options.deadline,
        answers=answers,
        warm_up=options.warm_up,
        seconds=seconds,
        stream=subject.stream(options.words),
        frames=unseen_frames(subject, engine),
        question=lambda picture: subject.question(picture, options.new),
        extra=extra,
    )
    try:
        seen = Run(loop, plan).observe()
    finally:
        engine.close()
    if isinstance(loop, OneAtATime):
        return plan, seen
    _check_counts(engine.load, seen)
    return plan, seen


def _check_counts(load: Any, seen: Observed) -> None:
    """The engine has counted what was seen of it."""
    frames = [one for frames in seen.frames for one in frames]
    fates = [one.fate for one in frames]
    assert load.captions == fates.count("answered"), "every caption is counted, once"
    assert load.dropped_frames == fates.count("dropped"), "every dropped frame is counted, once"
    assert load.refused_frames == fates.count("refused"), "every refused frame is counted, once"


def _disturbed(subject: Subject, options: argparse.Namespace, streams: int) -> Observed:
    brief = min(options.seconds, BRIEF_S)
    extra = [(options.warm_up + brief / 2, name, request) for name, request in huge(subject).items()]
    return _run(subject, options, streams, options.answers, _batched, brief, extra)[1]


def huge(subject: Subject) -> dict[str, GenerationRequest]:
    """A text of 19 MB, a picture of 40 megapixels, and a conversation of 500 turns."""
    pixels = (
        np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8).repeat(100, 0).repeat(100, 1)
    )
    with io.BytesIO() as file:
        PILImage.fromarray(pixels).save(file, "JPEG")
        picture = file.getvalue()
    turns: list[Part] = []
    for _ in range(500):
        turns += [Text(role="user", text="is"), Text(role="assistant", text="a")]
    parts: dict[str, tuple[Part, ...]] = {
        "19 MB of text": (Text(role="user", text="describe " * (19 * 10**6 // 9)),),
        "40 megapixels": (Image(data=picture), Text(role="user", text=QUESTION)),
        "500 turns": (*turns, Text(role="user", text=QUESTION)),
    }
    sampling = SamplingParams(max_new_tokens=16)
    return {
        name: GenerationRequest(
            sample=Sample(source="benchmark", sample_id=name, parts=own), sampling=sampling
        )
        for name, own in parts.items()
    }


def largest(run: Callable[[int], Figures], most: int) -> list[Figures]:
    """Runs that close in on the largest number of streams that is held, to an eighth of it: all of them."""
    tried: list[Figures] = []

    def holds(count: int) -> bool:
        tried.append(run(count))
        return tried[-1].attainment >= ATTAINED

    failed = next((count for count in _doubling(most) if not holds(count)), None)
    if failed is None:
        return tried
    fine = failed // 2
    while failed - fine > max(fine // 8, 1):
        middle = (fine + failed) // 2
        fine, failed = (middle, failed) if holds(middle) else (fine, middle)
    return tried


def _doubling(most: int) -> list[int]:
    return [2**n for n in range(int(math.log2(most)) + 1)]


def held(tried: Sequence[Figures]) -> int:
    """The largest number of streams held by all runs of so many and fewer."""
    ordered = sorted(tried, key=lambda one: one.streams)
    fine = itertools.takewhile(lambda one: one.attainment >= ATTAINED, ordered)
    return max((one.streams for one in fine), default=0)


def _checks(
    options: argparse.Namespace, found: Sequence[Figures], idle: Figures, together: Figures
) -> list[Check]:
    must = [one for one in found if one.streams <= options.hold]
    checks = [
        Check(
            "every frame is on time, or counted as late, dropped, refused or waiting",
            all(
                one.frames == one.on_time + one.late + one.dropped + one.refused + one.waiting
                for one in found
            ),
            f"{sum(one.frames for one in found)} frames",
        )
    ]
    if must:
        worst = min(one.attainment for one in must)
        claim = f"{options.hold} streams: ≥ {ATTAINED:.0%} of the frames on time"
        checks.append(Check(claim, worst >= ATTAINED, f"{worst:.2%}"))
    if must and options.answers:
        slowest = max(one.answer_p95 for one in must)
        ratio = slowest / together.answer_p95
        claim = f"answers' P95 ≤ {TIMES_IDLE:g} times theirs without streams"
        checks.append(
            Check(
                claim,
                ratio <= TIMES_IDLE,
                f"{ratio:.2f} times (one alone: {slowest / idle.answer_p95:.1f} times)",
            )
        )
    if must and not math.isnan(must[-1].growth.low):
        growth, rate = must[-1].growth, max(must[-1].frames / options.seconds, 1.0)
        flat = growth.low <= 0 or growth.value / rate < FLAT_BYTES
        checks.append(Check("memory is flat", flat, _growth(must[-1])))
    return checks


def _growth(one: Figures) -> str:
    kib = one.growth.scaled(1 / 1024)
    return f"{kib.value:.1f} [{kib.low:.1f}, {kib.high:.1f}] KiB/s"


def _report(found: Sequence[Figures], idle: Figures, together: Figures) -> str:
    rows = []
    for one in (idle, *([together] if together is not idle else []), *found):
        live = [
            f"{one.attainment:.2%}",
            f"{one.late} / {one.dropped} / {one.refused + one.waiting}",
            f"{one.underruns} / {one.stall_s:.1f}",
            f"{milliseconds(one.frame_p50)} / {milliseconds(one.frame_p95)}",
            f"{one.tokens_per_stream:.1f}",
        ]
        answers = [
            one.done,
            f"{milliseconds(one.ttft_p50)} / {milliseconds(one.ttft_p95)}",
            f"{milliseconds(one.answer_p50)} / {milliseconds(one.answer_p95)}",
        ]
        rows.append(
            [
                f"{one.streams} + {one.answers}",
                *(live if one.streams else ["-"] * len(live)),
                *(answers if one.answers else ["-"] * len(answers)),
                f"{milliseconds(one.step_p50)} / {milliseconds(one.step_p95)}",
                f"{one.busy:.0%} / {one.cores:.2f}",
                f"{one.live:.0%} / {one.embedding:.0%}",
                _growth(one),
                "{} / {}".format(*MOSS_VL.get(one.streams, ("-", "-"))),
            ]
        )
    header = [
        "streams + answers",
        "on time",
        "late / dropped / other",
        "underruns / stall s",
        "frame P50 / P95 ms",
        "tokens/s per stream",
        "answers",
        "first token P50 / P95 ms",
        "answer P50 / P95 ms",
        "step P50 / P95 ms",
        "in steps / cores",
        "time share: live / images",
        "memory grows",
        "MOSS-VL, 1 fps: P95 ms / tokens/s",
    ]
    return table(header, rows)


def _told(found: Disturbance) -> str:
    return (
        f"Disturbed: frame P95 {milliseconds(found.before)} ms before, {milliseconds(found.during)} ms "
        f"during ({found.frames} frames); a step's P95 {milliseconds(found.step)} ms. "
        f"{'; '.join(found.outcomes)}.\n"
    )


def _beside(tried: dict[str, list[Figures]]) -> str:
    rows = []
    for name, runs in tried.items():
        most = held(runs)
        best = next((one for one in runs if one.streams == most), runs[0])
        rows.append(
            [
                name,
                most,
                f"{best.cores:.2f}",
                f"{most / max(best.cores, 1e-9):.1f}",
                f"{milliseconds(best.cores / best.streams)}",
                f"{milliseconds(best.frame_p95)}",
            ]
        )
    header = [
        f"way (at least {ATTAINED:.0%} on time)",
        "streams",
        "cores used",
        "streams per core",
        "processor ms per stream and second",
        "frame P95 ms",
    ]
    courses = "; ".join(
        f"{name}: " + ", ".join(f"{one.streams} ({one.attainment:.1%})" for one in runs)
        for name, runs in tried.items()
    )
    return f"{table(header, rows)}\nTried: {courses}.\n"


if __name__ == "__main__":
    sys.exit(main())
