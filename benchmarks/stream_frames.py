"""What a frame costs as a stream grows older: time and memory of every fusion, each in a process of its own.

Frames are taken in turns, one process at a time, so that a drifting machine slows all alike; a stream that
starts over every few frames, and so cannot grow, tells how much it drifted.

Every frame says the same number of words: the stop tokens are forbidden, and the limit of words a frame cuts
the rest off. The text KV therefore grows by ``words + 2`` tokens a frame (the last word and the frame's stop
token are read with the next frame, together with the token that follows its image).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch

from benchmarks.measure import resident_bytes
from benchmarks.models import Size, film, small_engine
from casa_core.backbones.text_attention import text_attention
from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.plan import causal_mask
from casa_core.engine.engine import Engine, StreamSession
from casa_core.engine.requests import SamplingParams, StreamSettings
from casa_core.engine.settings import EngineSettings
from casa_core.fusion.config import FusionConfig, FusionKind

BLOCK = 25  # frames between two looks at resident memory, and in a block of the fits
CONTROL = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to stream: its fusion, its bounds, how many frames it is run for, whether it starts over with
    every block of them."""

    name: str
    kind: FusionKind
    frames: int
    words: int
    bounds: TextBounds | None = None
    starts_over: bool = False


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
    """The four lines of the picture, and the control."""
    bounds = TextBounds(sinks=16, recent=128, slack=32)
    each = partial(Contender, frames=frames, words=words)
    return [
        each(name="CA", kind="cross_attention"),
        each(name="CASA", kind="casa"),
        each(name="CA, bounded text", kind="cross_attention", bounds=bounds),
        each(name="insertion", kind="insertion", frames=min(frames, insertion_frames)),
        each(name=CONTROL, kind="cross_attention", starts_over=True),
    ]


class _Stream:
    """One contender's stream, measured and checked frame by frame."""

    def __init__(self, contender: Contender, size: Size) -> None:
        known = small_engine(size, FusionConfig(kind=contender.kind))
        one = EngineSettings(slots=1, answer_slots=0, image_cache_tokens=0)
        self.engine = engine = Engine(known.model, known.processor, one)
        self.contender, self.size = contender, size
        self.slots = engine._slots
        self.session = self._open()
        self.prompt = len(engine.processor.stream_prompt(""))
        self.prefix = len(engine.processor.frame_prefix_ids)
        self.film = film(size.side, seed=1)
        self.token_bytes = 2 * 4 * size.layers * size.kv_heads * (size.hidden // size.heads)
        self.frames = self.drops = 0

    def _open(self) -> StreamSession:
        settings = StreamSettings(
            max_tokens_per_frame=self.contender.words,
            sampling=SamplingParams(stop_bias=-1e9),
            bounds=self.contender.bounds,
        )
        return self.engine.open_session(settings=settings)

    def push(self, look: bool) -> Sample:
        """One frame; ``look``: at resident memory too, before its time is taken."""
        if self.contender.starts_over and self.frames == BLOCK:
            self.session.close()
            self.session, self.frames = self._open(), 0
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
        windows = self.slots.sequences.windows
        assert self.session.image_tokens == windows.image_lengths[0] == image
        assert windows.text_lengths[0] == (words if self.contender.kind == "casa" else 0)

    def finish(self) -> tuple[float, int]:
        """What :class:`Course` has beside the samples."""
        return self._attention_slope(), self.drops

    @torch.inference_mode()
    def _attention_slope(self) -> float:
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
        flat = self.contender.bounds is not None or self.contender.starts_over
        return 0.0 if flat else grown / (self.frames / 2)


class _Apart:
    """The same in a process of its own, so that its memory can be told from the others'."""

    def __init__(self, contender: Contender, size: Size) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, contender, size), daemon=True).start()
        theirs.close()

    def push(self, look: bool) -> Sample:
        """As :meth:`_Stream.push`."""
        self._pipe.send(look)
        return self._pipe.recv()

    def finish(self) -> tuple[float, int]:
        """As :meth:`_Stream.finish`; the process ends."""
        self._pipe.send(None)
        return self._pipe.recv()


def _serve(pipe: Connection, contender: Contender, size: Size) -> None:
    """A contender's process: a frame for every message, and at ``None`` what remains to be told."""
    torch.set_num_threads(1)
    stream = _Stream(contender, size)
    while (look := pipe.recv()) is not None:
        pipe.send(stream.push(look))
    pipe.send(stream.finish())


def run(chosen: Sequence[Contender], size: Size, *, apart: bool = True) -> list[Course]:
    """Run all contenders to their ends, frame by frame in turns; not ``apart``: in this process."""
    streams = [(_Apart if apart else _Stream)(contender, size) for contender in chosen]
    samples: list[list[Sample]] = [[] for _ in chosen]
    for frame in range(max(contender.frames for contender in chosen)):
        for contender, stream, taken in zip(chosen, streams, samples, strict=True):
            if frame < contender.frames:
                taken.append(stream.push(frame % BLOCK == 0))
    return [
        Course(contender, taken, *stream.finish())
        for contender, stream, taken in zip(chosen, streams, samples, strict=True)
    ]
