"""Packing under two budgets: ours beside textbook methods and the packers of other projects, in one run.

python -m benchmarks.packing [--samples 1000000] [--peers FOLDER]

Each way packs the same stream in a process of its own. The ways that need every size at once, or take time
that grows with the square of what they see, are given 4,096 samples at a time, as many as ours keeps
waiting; that also is how they are used elsewhere. TRL and ``binpacking`` know one budget: they pack by
text, and the sequences that then exceed the image budget are counted. ``--peers`` names a folder into which
they were installed: ``pip install --no-deps --target FOLDER trl binpacking future datasets dill xxhash
multiprocess``.

nanoVLM's way is written anew from its repository (huggingface/nanoVLM, ``data/advanced_datasets.py``): of a
buffer, largest first, each to the least loaded of as many sequences as the sum asks, where it fits. There
an image is text; here a sequence's load is the fuller of its two budgets.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, stamp, table, write_result
from benchmarks.packing_sizes import MIXES, Ints, draw
from pipelines.data.packing import Budget, Packer, lower_bound

BUDGET = Budget(2048, 20_480)
WINDOW = 4096
GOAL = 1.005
Packed = Iterator[Sequence[int] | Ints]


def ours(text: Ints, image: Ints) -> Packed:
    """Fed in pieces, as the pack stage does."""
    packer = Packer(BUDGET)
    for start in range(0, len(text), 1 << 16):
        yield from packer.feed(text[start : start + (1 << 16)], image[start : start + (1 << 16)])
    yield from packer.finish()


def next_fit(text: Ints, image: Ints) -> Packed:
    """A sequence is closed by the first sample that does not fit: what streaming loaders do."""
    members: list[int] = []
    text_left, image_left = BUDGET.text, BUDGET.image
    for number, (t, i) in enumerate(zip(text.tolist(), image.tolist(), strict=True)):
        if members and (t > text_left or i > image_left):
            yield members
            members, text_left, image_left = [], BUDGET.text, BUDGET.image
        members.append(number)
        text_left, image_left = text_left - t, image_left - i
    yield members


def first_fit(text: Ints, image: Ints) -> Packed:
    yield from _fit(text, image, decreasing=False, best=False)


def first_fit_decreasing(text: Ints, image: Ints) -> Packed:
    yield from _fit(text, image, decreasing=True, best=False)


def best_fit_decreasing(text: Ints, image: Ints) -> Packed:
    yield from _fit(text, image, decreasing=True, best=True)


def _fit(text: Ints, image: Ints, *, decreasing: bool, best: bool) -> Packed:
    """First or best fit over all sequences of a window."""
    size = np.maximum(text / BUDGET.text, image / BUDGET.image)
    order = np.argsort(-size, kind="stable") if decreasing else np.arange(len(text))
    left = np.zeros((2, len(text)), np.int64)
    members: list[list[int]] = []
    for number in order.tolist():
        t, i = text[number], image[number]
        used = len(members)
        fits = np.flatnonzero((left[0, :used] >= t) & (left[1, :used] >= i))
        if not len(fits):
            members.append([])
            left[:, used] = BUDGET.text, BUDGET.image
            place = used
        elif best:
            room = np.maximum((left[0, fits] - t) / BUDGET.text, (left[1, fits] - i) / BUDGET.image)
            place = int(fits[room.argmin()])
        else:
            place = int(fits[0])
        members[place].append(number)
        left[:, place] -= (t, i)
    yield from members


def nanovlm(text: Ints, image: Ints) -> Packed:
    """The least loaded sequence takes the next largest sample; one that fits nowhere opens a sequence."""
    order = np.argsort(-(text + image), kind="stable").tolist()
    count = lower_bound(int(text.sum()), int(image.sum()), BUDGET)
    members: list[list[int]] = [[] for _ in range(count)]
    left = [(BUDGET.text, BUDGET.image)] * count
    heap = [(0.0, place) for place in range(count)]
    for number in order:
        t, i = int(text[number]), int(image[number])
        passed: list[tuple[float, int]] = []
        while heap and (left[heap[0][1]][0] < t or left[heap[0][1]][1] < i):
            passed.append(heapq.heappop(heap))
        if heap:
            place = heapq.heappop(heap)[1]
        else:
            place = len(members)
            members.append([])
            left.append((BUDGET.text, BUDGET.image))
        members[place].append(number)
        left[place] = left[place][0] - t, left[place][1] - i
        load = max(1 - left[place][0] / BUDGET.text, 1 - left[place][1] / BUDGET.image)
        for entry in [*passed, (load, place)]:
            heapq.heappush(heap, entry)
    yield from (own for own in members if own)


def trl(text: Ints, image: Ints) -> Packed:
    import pyarrow as pa
    from trl.data_utils import _pack_bfd  # pyright: ignore[reportMissingImports]

    ends = np.concatenate([[0], np.cumsum(text)]).astype(np.int32)
    numbers = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.repeat(np.arange(len(text)), text)))
    packed = _pack_bfd(pa.table({"input_ids": numbers}), BUDGET.text)
    for ids in packed["input_ids"].combine_chunks():
        yield np.unique(ids.values.to_numpy()).tolist()


def binpacking(text: Ints, image: Ints) -> Packed:
    from binpacking import to_constant_volume  # pyright: ignore[reportMissingImports]

    pairs = list(enumerate(text.tolist()))
    for bin_ in to_constant_volume(pairs, BUDGET.text, weight_pos=1):
        yield [number for number, _ in bin_]


def windowed(way: Callable[[Ints, Ints], Packed]) -> Callable[[Ints, Ints], Packed]:
    """The same, a window at a time."""

    def pack(text: Ints, image: Ints) -> Packed:
        for start in range(0, len(text), WINDOW):
            own = slice(start, start + WINDOW)
            yield from ([start + n for n in members] for members in way(text[own], image[own]))

    return pack


WAYS: dict[str, tuple[Callable[[Ints, Ints], Packed], float]] = {
    "ours": (ours, 1.0),
    "next fit": (next_fit, 1.0),
    "first fit": (windowed(first_fit), 0.1),
    "first fit decreasing": (windowed(first_fit_decreasing), 0.1),
    "best fit decreasing": (windowed(best_fit_decreasing), 0.1),
    "nanoVLM's": (windowed(nanovlm), 0.1),
    "TRL, by text": (windowed(trl), 0.1),
    "binpacking, by text": (windowed(binpacking), 0.1),
}
"""Name → the way, and which part of the stream it is given: the slow ones a tenth."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a way came to, on the samples it was given."""

    samples: int
    sequences: int
    bound: int
    text_fill: float
    image_fill: float
    over_budget: int
    cpu_seconds: float
    grown_mb: float


def measure(way: Callable[[Ints, Ints], Packed], text: Ints, image: Ints) -> Measured:
    """Packs, and checks that every sample is in one sequence; memory is what the process grew by."""
    seen = np.zeros(len(text), np.int8)
    sequences = over = 0
    before = _start_peak()
    began = time.process_time()
    for members in way(text, image):
        sequences += 1
        seen[members] += 1
        over += int(text[members].sum() > BUDGET.text or image[members].sum() > BUDGET.image)
    seconds = time.process_time() - began
    grown = (_resident_kb("VmHWM") - before) / 1024
    assert (seen == 1).all(), "every sample is in exactly one sequence"
    total_text, total_image = int(text.sum()), int(image.sum())
    return Measured(
        samples=len(text),
        sequences=sequences,
        bound=lower_bound(total_text, total_image, BUDGET),
        text_fill=total_text / sequences / BUDGET.text,
        image_fill=total_image / sequences / BUDGET.image,
        over_budget=over,
        cpu_seconds=seconds,
        grown_mb=grown,
    )


def _start_peak() -> int:
    """Resident kB now, from which the kernel counts the peak anew: making the sizes took more (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_kb("VmRSS")


def _resident_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _in_child(name: str, mix: str, count: int, peers: str, queue: Any) -> None:
    sys.path.append(peers)
    way = WAYS[name][0]
    try:
        list(way(np.array([5, 6]), np.array([7, 8])))  # imports, before the clock
    except ImportError as error:
        queue.put(str(error))
        return
    queue.put(measure(way, *draw(count, mix)))


def run(name: str, mix: str, count: int, peers: str) -> Measured | str:
    """One way in a process of its own; a text where it is not installed."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(name, mix, count, peers, queue))
    child.start()
    found = queue.get()
    child.join()
    return found


def report(payload: dict[str, Any]) -> str:
    lines = [
        "# Packing under two budgets",
        "",
        f"`{payload['command']}`, {payload['date']}, {payload['machine']}. Options: {payload['options']}.",
        "",
        "Sequences as a multiple of the lower bound by sums, max(⌈Σtext / 2048⌉, ⌈Σimage / 20480⌉). Sizes",
        "are simulated: `benchmarks/packing_sizes.py` states what is assumed. Processor time of one core.",
        "",
    ]
    header = "way|samples|sequences / bound|text full|images full|over image budget|samples a minute|MB grown"
    for mix, found in payload["mixes"].items():
        rows = []
        for name, own in found.items():
            if isinstance(own, str):
                rows.append([name, f"not installed: {own}", *[""] * 6])
                continue
            rate = own["samples"] / own["cpu_seconds"] * 60
            rows.append(
                [
                    name,
                    f"{own['samples']:,}",
                    f"{own['sequences'] / own['bound']:.4f}",
                    f"{own['text_fill']:.2%}",
                    f"{own['image_fill']:.2%}",
                    f"{own['over_budget'] / own['sequences']:.1%}",
                    f"{rate:,.0f}",
                    f"{own['grown_mb']:.0f}",
                ]
            )
        lines += [f"## {mix}", "", table(header.split("|"), rows)]
    growth = ", ".join(
        f"{count:,} samples {own['grown_mb']:.1f} MB" for count, own in payload["growth"].items()
    )
    lines += [f"Ours, as the stream grows: {growth}.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--peers", default="", help="folder with trl and binpacking")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    mixes: dict[str, dict[str, Any]] = {}
    for mix in MIXES:
        mixes[mix] = {}
        for name, (_, part) in WAYS.items():
            part = part if mix == "FineVision-like" else part * 0.2
            found = run(name, mix, max(int(options.samples * part), 1), options.peers)
            mixes[mix][name] = found if isinstance(found, str) else _values(found)
            print(mix, name, mixes[mix][name], flush=True)
    growth = {}
    for count in (options.samples // 10, options.samples):
        found = run("ours", "FineVision-like", count, options.peers)
        assert isinstance(found, Measured)
        growth[count] = _values(found)
    payload = stamp("python -m benchmarks.packing", vars(options) | {"peers": "FOLDER"})
    payload |= {"mixes": mixes, "growth": growth}
    print(write_result("packing", payload, report(payload), options.results).read_text())


def _values(measured: Measured) -> dict[str, Any]:
    return {name: getattr(measured, name) for name in Measured.__slots__}


if __name__ == "__main__":
    main()
