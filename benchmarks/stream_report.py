"""What the courses of :mod:`benchmarks.stream_frames` say: growth with intervals, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.measure import Slope, slope, table
from benchmarks.plot import Line, Panel, figure
from benchmarks.stream_frames import BLOCK, CONTROL, Course

FLAT_BYTES, FLAT_SECONDS = 100.0, 2e-6
"""A bounded stream counts as flat below so much a frame (one token's text KV is 8,192 bytes by default)."""


@dataclass(frozen=True, slots=True)
class Fits:
    """Growth over the second half of a course, a frame.

    Seconds (wall and processor, the machine's drift taken out), bytes of the process, and of the text KV with
    its spare room (both step by step, so fitted alike), and the bytes of it in use, exactly.
    """

    wall: Slope
    cpu: Slope
    resident: Slope
    text_room: Slope
    text_bytes: float

    @classmethod
    def of(cls, course: Course, control: Course) -> Fits:
        """Fit a course."""
        start = len(course.samples) // 2 // BLOCK * BLOCK
        late = course.samples[start:]
        steps = range(len(late))
        looked = [(step, sample) for step, sample in enumerate(late) if sample.resident]
        at, per_block = [step for step, _ in looked], max(1, len(looked) // 10)
        grown = late[-1].text_bytes - course.samples[max(start - 1, 0)].text_bytes
        return cls(
            slope(steps, steadied(course, control, "wall")[start:], block=BLOCK),
            slope(steps, steadied(course, control, "cpu")[start:], block=BLOCK),
            slope(at, [sample.resident for _, sample in looked], block=per_block, robust=False),
            slope(at, [sample.text_room for _, sample in looked], block=per_block, robust=False),
            0.0 if course.contender.bounds or course.contender.starts_over else grown / len(late),
        )


def steadied(course: Course, control: Course, measure: str) -> list[float]:
    """Seconds of every frame, as if the control had always taken its median time.

    A block of frames in which the control was slower than usual by some factor is divided by that factor.
    """
    usual = np.median([getattr(sample, measure) for sample in control.samples])
    found: list[float] = []
    for start in range(0, len(course.samples), BLOCK):
        now = np.median([getattr(sample, measure) for sample in control.samples[start : start + BLOCK]])
        part = course.samples[start : start + BLOCK]
        found += [float(getattr(sample, measure) * usual / now) for sample in part]
    return found


def report(courses: Sequence[Course]) -> tuple[dict[str, Any], str, str]:
    """What is kept: numbers, a table for people, a picture."""
    (control,) = (course for course in courses if course.contender.name == CONTROL)
    fits = {course.contender.name: Fits.of(course, control) for course in courses}
    rows = [_row(course, control, fits[course.contender.name]) for course in courses]
    header = (
        "fusion",
        "frames",
        "wall ms a frame, first → last 10 %",
        "CPU ms, the same, steadied",
        "CPU growth, µs a frame, steadied",
        "… of self-attention alone",
        "resident growth, kB a frame",
        "… of the text KV with spare room",
        "… in use, exactly",
        "text tokens",
        "KV tokens",
        "image KV apart, KiB",
    )
    payload = {
        "courses": [
            {
                "name": course.contender.name,
                "frames": len(course.samples),
                "drops": course.drops,
                "fits": asdict(fits[course.contender.name]),
                "attention_slope": course.attention_slope,
                "last": asdict(course.samples[-1]),
                "blocks": _blocks(course),
            }
            for course in courses
        ]
    }
    text = table(header, rows) + "\n" + _verdicts(courses, fits)
    return payload, text, _picture([course for course in courses if course is not control], control)


def _row(course: Course, control: Course, fit: Fits) -> list[object]:
    last, ends = course.samples[-1], max(len(course.samples) // 10, 1)
    wall = [sample.wall * 1e3 for sample in course.samples]
    cpu = [seconds * 1e3 for seconds in steadied(course, control, "cpu")]
    return [
        course.contender.name,
        len(course.samples),
        f"{np.median(wall[:ends]):.1f} → {np.median(wall[-ends:]):.1f}",
        f"{np.median(cpu[:ends]):.1f} → {np.median(cpu[-ends:]):.1f}",
        _span(fit.cpu.scaled(1e6)),
        f"{course.attention_slope * 1e6:.1f}",
        _span(fit.resident.scaled(1e-3)),
        f"{fit.text_room.value / 1e3:.1f}",
        f"{fit.text_bytes / 1e3:.1f}",
        last.text_tokens,
        last.kv_tokens,
        f"{last.window_bytes / 1024:.0f}",
    ]


def _span(fit: Slope) -> str:
    return f"{fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]"


def _verdicts(courses: Sequence[Course], fits: dict[str, Fits]) -> str:
    lines = [
        "Checked at every frame, exactly: the windowed fusions' text KV holds text tokens alone, and their "
        "image KV the latest frame's alone; insertion's holds both kinds, all of them.",
        f"The control starts over every {BLOCK} frames. Steadied: divided, block by block, by how much "
        "slower than usual the control was.",
    ]
    for course in courses:
        if course.contender.bounds is None:
            continue
        told = f"{course.contender.name} ({course.drops} times text was dropped)"
        lines += [f"{told}: {verdict}" for verdict in _flatness(fits[course.contender.name]).values()]
    return "\n".join(f"- {line}" for line in lines) + "\n"


FLAT = "flat"


def _flatness(fit: Fits) -> dict[str, str]:
    """Whether a bounded stream's memory and processor time grow, in a sentence each."""
    told: dict[str, str] = {}
    for name, found, limit, unit in (
        ("memory", fit.resident, FLAT_BYTES, "bytes"),
        ("processor time", fit.cpu, FLAT_SECONDS, "s"),
    ):
        if math.isnan(found.low):
            verdict = "not decided: too few frames"
        elif found.low <= 0 <= found.high:
            verdict = f"{FLAT}: its slope's interval contains 0"
        elif abs(found.value) < limit:
            verdict = f"{FLAT}: it changes by less than {limit:g} {unit} a frame"
        else:
            verdict = f"NOT flat: it changes by {limit:g} {unit} a frame or more"
        told[name] = f"{name} is {verdict}."
    return told


def is_flat(courses: Sequence[Course]) -> bool:
    """Whether neither memory nor processor time of a bounded stream grows."""
    (control,) = (course for course in courses if course.contender.name == CONTROL)
    bounded = [Fits.of(course, control) for course in courses if course.contender.bounds is not None]
    return all(f" is {FLAT}:" in told for fit in bounded for told in _flatness(fit).values())


def _blocks(course: Course) -> list[dict[str, float]]:
    """Every block's medians: enough to draw the course again."""
    found = []
    for start in range(0, len(course.samples), BLOCK):
        part = course.samples[start : start + BLOCK]
        found.append(
            {
                "frame": start,
                "wall_ms": round(float(np.median([sample.wall for sample in part])) * 1e3, 3),
                "cpu_ms": round(float(np.median([sample.cpu for sample in part])) * 1e3, 3),
                "resident": part[0].resident,
                "kv_tokens": part[0].kv_tokens,
            }
        )
    return found


def _picture(courses: Sequence[Course], control: Course) -> str:
    memory, seconds = [], []
    for course in courses:
        name, blocks = course.contender.name, _blocks(course)
        cpu = steadied(course, control, "cpu")
        memory.append(Line(label=name, points=[(b["frame"], b["resident"] / 2**20) for b in blocks]))
        starts = range(0, len(cpu), BLOCK)
        points = [(at, float(np.median(cpu[at : at + BLOCK])) * 1e3) for at in starts]
        seconds.append(Line(label=name, points=points))
    panels = [
        Panel(title="Memory of the process", x="frame", y="resident memory, MiB", lines=memory),
        Panel(title="Time of a frame", x="frame", y="processor time, ms (steadied)", lines=seconds),
    ]
    return figure(panels, caption="Memory and time of a frame against the age of a stream, four fusions")
