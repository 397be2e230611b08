"""Decode steps recorded as CUDA graphs, and replayed: one launch from the host in place of one per kernel.

A graph repeats its kernels with the shapes and addresses they were recorded with. So the caches stay where
they are (a batch allocates them once: :class:`casa_core.decoding.kv_batch.Room`), all that changes from step
to step stands in one tensor of numbers, and the sizes are those of a bucket: sequences and entries are
rounded up to a power of two. A row of the bucket that has no new token runs along: what it writes lies behind
its own entries, where its next token will be written, and its logits are left out.

Shape suffixes: A sequences that are extended, B rows of a bucket, V vocabulary, N numbers of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from casa_core.decoding.decode_step import NUMBERS, DecodeStep, StepCaches, step_caches
from casa_core.decoding.kv_cache import TextCache, WindowCache
from casa_core.errors import ConfigError

Function: TypeAlias = Callable[[], torch.Tensor]
# Runs a function once, and gives its output, which further calls of the other result overwrite.
Record: TypeAlias = Callable[[Function], tuple[torch.Tensor, Callable[[], None]]]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Sizes of a graph: rows, entries of text, images and window text, and whether a row is in a window."""

    rows: int
    text: int
    images: int
    window_text: int
    windowed: bool


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded step, its input and its output."""

    numbers_NB: torch.Tensor
    logits_BV: torch.Tensor
    replay: Callable[[], None]


class GraphedStep:
    """A :class:`DecodeStep` by graphs; each is recorded when its sizes first occur.

    Args:
        step: Not a compiled one.
        record: By default :func:`record_cuda`.

    Raises:
        ConfigError: If there is no CUDA device to record on, or the step is compiled.
    """

    def __init__(self, step: DecodeStep, record: Record | None = None) -> None:
        if step.is_compiled:
            raise ConfigError(
                "CUDA graphs were asked for, of decode steps that are compiled.",
                "They record a plain step's kernels.",
                "Choose either `graphs` or `compile`.",
            )
        if record is None and step.device.type != "cuda":
            raise ConfigError(
                "CUDA graphs were asked for, and the model is not on a CUDA device.",
                f"It is on {step.device}.",
                "Leave `graphs` out there.",
            )
        self._step, self._record = step, record or record_cuda
        self._graphs: dict[_Bucket, _Graph] = {}
        self._addresses: list[int] = []

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @torch.inference_mode()
    def run(self, numbers_NA: Sequence[Sequence[int]], text: TextCache, windows: WindowCache) -> torch.Tensor:
        """One step, (A, V) logits, as :meth:`DecodeStep.run`."""
        active: dict[str, Sequence[int]] = dict(zip(NUMBERS, numbers_NA, strict=True))
        count = min(next_power(max(active["row"]) + 1), text.size)
        numbers_NB = _with_idle_rows(active, count, text, windows)
        text.make_room(max(text.lengths[:count]) + 1)
        windows.make_room(max(windows.text_lengths[:count]) + 1)
        caches = step_caches(text, windows)
        pairs = [*caches.text, *caches.images, *caches.window_text]
        if (addresses := [tensor.data_ptr() for pair in pairs for tensor in pair]) != self._addresses:
            self._graphs.clear()  # the caches have grown, and lie elsewhere
            self._addresses = addresses
        room = [min((pair[0].shape[axis] for pair in part), default=0) for part, axis in caches.axes]
        needed = max(active["text"]) + 1, max(active["images"]), max(active["window_text"]) + 1
        sizes = [min(next_power(size), most) for size, most in zip(needed, room, strict=True)]
        bucket = _Bucket(count, *sizes, windowed=max(active["window_text"]) >= 0)
        new_NB = torch.tensor(numbers_NB)
        device = self._step.device
        if (graph := self._graphs.get(bucket)) is None:
            graph = self._graphs[bucket] = self._recorded(bucket, new_NB.to(device), caches)
        else:
            new_NB = new_NB.pin_memory() if device.type == "cuda" else new_NB
            graph.numbers_NB.copy_(new_NB, non_blocking=True)
            graph.replay()
        return graph.logits_BV.index_select(0, torch.tensor(active["row"], device=device))

    def _recorded(self, bucket: _Bucket, numbers_NB: torch.Tensor, caches: StepCaches) -> _Graph:
        entries = [
            torch.arange(size, device=numbers_NB.device)
            for size in (bucket.text, bucket.images, bucket.window_text)
        ]
        logits_BV, replay = self._record(
            lambda: self._step(numbers_NB, caches, *entries, together=True, windowed=bucket.windowed)
        )
        return _Graph(numbers_NB, logits_BV, replay)


def record_cuda(function: Function) -> tuple[torch.Tensor, Callable[[], None]]:
    """Record a function of tensors that stay where they are as a CUDA graph, and run it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # libraries set themselves up in their first call, which must not be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Another thread may prepare images meanwhile: that is no part of the recording, and no fault.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = function()
    graph.replay()
    return output, graph.replay


def _with_idle_rows(
    active: Mapping[str, Sequence[int]], count: int, text: TextCache, windows: WindowCache
) -> list[list[int]]:
    """Numbers of the first ``count`` rows: those of the sequences with a new token, and of the others."""
    place = {row: number for number, row in enumerate(active["row"])}
    idle = {
        "row": range(count),
        "text": text.lengths,
        # 0 entries: the row writes its first one, whether it is in a window or not.
        "window_text": windows.text_lengths,
    }
    return [
        [
            active[name][place[row]] if row in place else int(idle[name][row]) if name in idle else 0
            for row in range(count)
        ]
        for name in NUMBERS
    ]


def next_power(size: int) -> int:
    """The least power of two that is not smaller; 0 stays 0."""
    return 1 << (size - 1).bit_length() if size else 0
