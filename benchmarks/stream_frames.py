"""What a frame costs as a stream grows older: time and memory of every fusion, each in a process of its own.

Frames are taken in turns, one process at a time, so that a drifting machine slows all alike. Every frame
says the same number of words: the stop tokens are forbidden, and the limit of words a frame cuts the rest
off. The text KV therefore grows by ``words + 2`` tokens a frame (the last word and the frame's stop token are
read with the next frame, together with the token that follows its image).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Slope, resident_bytes, slope, table
from benchmarks.models import Size, film, small_engine
from benchmarks.plot import Line, Panel, figure
from casa_core.backbones.text_attention import text_attention
from casa_core.engine.requests import SamplingParams
from casa_core.engine.session import StreamSession
from casa_core.engine.slots import Slots
from casa_core.fusion.config import FusionConfig, FusionKind
from casa_core.kv_cache import TextBounds
from casa_core.steps import causal_mask

BLOCK = 25  # frames between two looks at resident memory, and in a block of the fits
FLAT_BYTES, FLAT_SECONDS = 100.0, 2e-6
"""A bounded stream counts as flat below so much a frame (one token's text KV is 8,192 bytes by default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to stream: its fusion, its bounds, how many frames it is run for."""

    name: str
    kind: FusionKind
    frames: int
    bounds: TextBounds | None = None
    words: int = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame: wall and processor seconds; resident bytes (0: not looked at); exact bytes and tokens held.

    ``text_room`` are the text KV's bytes with the room made in advance, ``text_bytes`` those in use.
    """

    wall: float
    cpu: float
    resident: int
    text_bytes: int
    text_room: int
    window_bytes: int
    text_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Course:
    """A contender's whole run.

    Attributes:
        contender: Whose.
        samples: One a frame.
        attention_slope: Seconds a frame by which its self-attention over the text KV alone grows.
        drops: How often text was dropped.
    """

    contender: Contender
    samples: list[Sample]
    attention_slope: float
    drops: int


def contenders(frames: int, insertion_frames: int, words: int) -> list[Contender]:
    """The four lines of the picture."""
    bounds = TextBounds(sinks=16, recent=128, slack=32)
    return [
        Contender(name="CA", kind="cross_attention", frames=frames, words=words),
        Contender(name="CASA", kind="casa", frames=frames, words=words),
        Contender(name="CA, bounded text", kind="cross_attention", frames=frames, bounds=bounds, words=words),
        Contender(name="insertion", kind="insertion", frames=min(frames, insertion_frames), words=words),
    ]


class _Stream:
    """One contender's stream, measured and checked frame by frame."""

    def __init__(self, contender: Contender, size: Size) -> None:
        engine = small_engine(size, FusionConfig(kind=contender.kind))
        self.contender, self.size = contender, size
        self.slots = Slots(engine.model, 1, bounds=contender.bounds)
        self.session: StreamSession = engine.open_session(
            max_tokens_per_frame=contender.words, sampling=SamplingParams(stop_bias=-1e9), slots=self.slots
        )
        self.prompt = len(engine.processor.stream_prompt(""))
        self.prefix = len(engine.processor.frame_prefix_ids)
        self.film = film(size.side, seed=1)
        self.token_bytes = 2 * 4 * size.layers * size.kv_heads * (size.hidden // size.heads)
        self.frames = self.drops = 0

    def push(self, look: bool) -> Sample:
        """One frame; ``look``: at resident memory too, before its time is taken."""
        frame = next(self.film)
        resident = resident_bytes() if look else 0
        dropped = self.slots.state(0).dropped
        wall, cpu = time.perf_counter(), time.process_time()
        event = self.session.push_frame(frame, self.frames / 2)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert len(event.token_ids) == self.contender.words, "every frame says as much"
        self.frames += 1
        self.drops += self.slots.state(0).dropped > dropped
        self._check()
        return Sample(
            wall,
            cpu,
            resident,
            self.session.kv_tokens * self.token_bytes,
            self.slots.sequences.text.nbytes,
            self.slots.sequences.windows.nbytes,
            self.session.text_tokens,
            self.session.kv_tokens,
        )

    def _check(self) -> None:
        """KV holds exactly the text (insertion: and every image), and the latest image alone stands apart."""
        words, frames, image = self.contender.words, self.frames, self.size.image_tokens
        read = self.prompt + frames * (self.prefix + 1 + words + 1) - 2
        held = self.session.kv_tokens
        if self.contender.kind == "insertion":
            assert held == read + frames * image, (held, read, frames)
            return
        assert held == self.session.text_tokens == read - self.slots.state(0).dropped
        if self.contender.bounds is not None:
            assert held <= self.contender.bounds.limit
        window = image + (words if self.contender.kind == "casa" else 0)
        assert self.session.image_tokens == image
        assert self.slots.sequences.windows.nbytes == window * self.token_bytes

    @torch.inference_mode()
    def attention_slope(self) -> float:
        """Seconds a frame by which self-attention over the text KV alone grew in the second half."""
        text, end = self.slots.sequences.text, self.session.kv_tokens
        half = max(end // 2, 1)
        taken: dict[int, list[float]] = {half: [], end: []}
        new = [3 + self.prefix + (self.size.image_tokens if self.contender.kind == "insertion" else 0)]
        for _ in range(9):
            for length, seconds in taken.items():
                began = time.process_time()
                for count in [*new, *[1] * (self.contender.words - 1)]:
                    mask = causal_mask([length - count], count, torch.device("cpu")) if count > 1 else None
                    shape = (1, self.size.heads, count, self.size.hidden // self.size.heads)
                    query = torch.zeros(shape)
                    for layer, key in text.keys.items():
                        value = text.values[layer]
                        text_attention(
                            torch.nn.Identity(), query, key[:, :, :length], value[:, :, :length], mask
                        )
                seconds.append(time.process_time() - began)
        grown = float(np.median(taken[end]) - np.median(taken[half]))
        return 0.0 if self.contender.bounds else grown / (self.frames / 2)


def _serve(pipe: Connection, contender: Contender, size: Size) -> None:
    """A contender's process: a frame for every message, and at ``None`` what remains to be told."""
    torch.set_num_threads(1)
    stream = _Stream(contender, size)
    while (look := pipe.recv()) is not None:
        pipe.send(stream.push(look))
    pipe.send((stream.attention_slope(), stream.drops))


def run(chosen: Sequence[Contender], size: Size) -> list[Course]:
    """Run all contenders to their ends, frame by frame in turns."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for contender in chosen:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, contender, size), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    samples: list[list[Sample]] = [[] for _ in chosen]
    for frame in range(max(contender.frames for contender in chosen)):
        for contender, pipe, taken in zip(chosen, pipes, samples, strict=True):
            if frame < contender.frames:
                pipe.send(frame % BLOCK == 0)
                taken.append(pipe.recv())
    courses = []
    for contender, pipe, taken in zip(chosen, pipes, samples, strict=True):
        pipe.send(None)
        courses.append(Course(contender, taken, *pipe.recv()))
    return courses


@dataclass(frozen=True, slots=True)
class Fits:
    """Growth over the second half of a course, a frame.

    Seconds (wall and processor), bytes of the process, and of the text KV with its spare room (both step by
    step, so fitted alike), and the bytes of it in use, exactly.
    """

    wall: Slope
    cpu: Slope
    resident: Slope
    text_room: Slope
    text_bytes: float

    @classmethod
    def of(cls, course: Course) -> Fits:
        """Fit a course."""
        start = len(course.samples) // 2
        late = course.samples[start:]
        steps = range(len(late))
        looked = [(step, sample) for step, sample in enumerate(late) if sample.resident]
        at, per_block = [step for step, _ in looked], max(1, len(looked) // 10)
        grown = late[-1].text_bytes - course.samples[start - 1].text_bytes
        return cls(
            slope(steps, [sample.wall for sample in late], block=BLOCK),
            slope(steps, [sample.cpu for sample in late], block=BLOCK),
            slope(at, [sample.resident for _, sample in looked], block=per_block, robust=False),
            slope(at, [sample.text_room for _, sample in looked], block=per_block, robust=False),
            0.0 if course.contender.bounds else grown / len(late),
        )


def report(courses: Sequence[Course]) -> tuple[dict[str, Any], str, str]:
    """What is kept: numbers, a table for people, a picture."""
    fits = [Fits.of(course) for course in courses]
    rows = []
    for course, fit in zip(courses, fits, strict=True):
        ends = max(len(course.samples) // 10, 1)
        early, late = course.samples[:ends], course.samples[-ends:]
        last = course.samples[-1]
        wall = [float(np.median([sample.wall for sample in part])) * 1e3 for part in (early, late)]
        cpu = [float(np.median([sample.cpu for sample in part])) * 1e3 for part in (early, late)]
        rows.append(
            [
                course.contender.name,
                len(course.samples),
                f"{wall[0]:.1f} → {wall[1]:.1f}",
                f"{cpu[0]:.1f} → {cpu[1]:.1f}",
                _span(fit.wall.scaled(1e6)),
                _span(fit.cpu.scaled(1e6)),
                f"{course.attention_slope * 1e6:.1f}",
                _span(fit.resident.scaled(1e-3)),
                f"{fit.text_room.value / 1e3:.1f}",
                f"{fit.text_bytes / 1e3:.1f}",
                last.text_tokens,
                last.kv_tokens,
                f"{last.window_bytes / 1024:.0f}",
            ]
        )
    header = (
        "fusion",
        "frames",
        "wall ms a frame, first → last 10 %",
        "CPU ms, first → last 10 %",
        "wall growth, µs a frame",
        "CPU growth, µs a frame",
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
                "fits": asdict(fit),
                "attention_slope": course.attention_slope,
                "last": asdict(course.samples[-1]),
                "blocks": _blocks(course),
            }
            for course, fit in zip(courses, fits, strict=True)
        ]
    }
    return payload, table(header, rows) + "\n" + _verdicts(courses, fits), _picture(courses)


def _span(fit: Slope) -> str:
    return f"{fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]"


def _verdicts(courses: Sequence[Course], fits: Sequence[Fits]) -> str:
    lines = [
        "Checked at every frame, exactly: the windowed fusions' text KV holds text tokens alone, and their "
        "image KV the latest frame's alone; insertion's holds both kinds, all of them.",
    ]
    for course, fit in zip(courses, fits, strict=True):
        if course.contender.bounds is None:
            continue
        for name, found, limit, unit in (
            ("memory", fit.resident, FLAT_BYTES, "bytes"),
            ("processor time", fit.cpu, FLAT_SECONDS, "s"),
        ):
            flat = found.low <= 0 <= found.high or abs(found.value) < limit
            verdict = "flat" if flat else "NOT flat"
            lines.append(
                f"{course.contender.name} ({course.drops} times text was dropped): {name} is {verdict} "
                f"(its interval contains 0, or it grows by less than {limit:g} {unit} a frame)."
            )
    return "\n".join(f"- {line}" for line in lines) + "\n"


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


def _picture(courses: Sequence[Course]) -> str:
    memory, seconds = [], []
    for course in courses:
        name, blocks = course.contender.name, _blocks(course)
        memory.append(Line(label=name, points=[(b["frame"], b["resident"] / 2**20) for b in blocks]))
        seconds.append(Line(label=name, points=[(b["frame"], b["cpu_ms"]) for b in blocks]))
    panels = [
        Panel(title="Memory of the process", x="frame", y="resident memory, MiB", lines=memory),
        Panel(title="Time of a frame", x="frame", y="processor time, ms", lines=seconds),
    ]
    return figure(panels, caption="Memory and time of a frame against the age of a stream, four fusions")
