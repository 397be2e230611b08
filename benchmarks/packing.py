"""Packing under two budgets: ours beside textbook methods and the packers of other projects, in one run.

python -m benchmarks.packing [--samples 1000000] [--peers FOLDER]

Each way packs the same stream in a process of its own. The textbook's packers see it whole; ``binpacking``
takes time that grows with the square of what it sees, and TRL and nanoVLM pack batches, so these are given
4,096 samples at a time, as many as ours keeps waiting. TRL and ``binpacking`` know one budget: they pack by
text, and the sequences that then exceed the image budget are counted. TRL's way also moves the tokens, which
is in its time, as is making a table of them. ``--peers`` names a folder into which they were installed:
``pip install --no-deps --target FOLDER trl binpacking future datasets dill xxhash multiprocess``.

nanoVLM's way chooses the sequences that its repository's code chooses (huggingface/nanoVLM at 4e0c096,
``data/advanced_datasets.py``): a buffer's samples by falling length, each into the least loaded of ⌈sum⌉ + 5
sequences that has room for it. There an image's tokens are part of the length, and the second budget counts
pictures; here the length is the text, as that is what its sequences are cut to, and the second budget counts
image tokens. Its search goes over all open sequences for each sample, here as there.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import packing_textbook
from benchmarks.measure import publish, read_options, table
from benchmarks.packing_sizes import MIXES, Ints, draw
from benchmarks.plot import Line, Panel, figure
from pipelines.data.pack.budgets import Budget, lower_bound, sized_bound
from pipelines.data.pack.packing import REACH, Packer

BUDGET = Budget(2048, 20_480)
WINDOW = 4096
NANOVLM_SPARE = 5
"""Sequences that its code opens above the sum of lengths."""
FEW_OPEN = 64
Packed = Iterator[Sequence[int] | Ints]


def ours(text: Ints, image: Ints) -> Packed:
    """Fed in pieces, as the pack stage does."""
    packer = Packer(BUDGET)
    for start in range(0, len(text), 1 << 16):
        yield from packer.feed(text[start : start + (1 << 16)], image[start : start + (1 << 16)])
    yield from packer.finish()


def textbook(way: Callable[[Ints, Ints, Budget], Iterator[list[int]]]) -> Callable[[Ints, Ints], Packed]:
    """One of the textbook's, with our budget."""
    return lambda text, image: way(text, image, BUDGET)


def nanovlm(text: Ints, image: Ints) -> Packed:
    """The longest first, each into the least loaded sequence with room; one that fits nowhere opens one."""
    count = -(-int(text.sum()) // BUDGET.text) + NANOVLM_SPARE
    members: list[list[int]] = [[] for _ in range(count)]
    load, images = [0] * count, [0] * count
    for number in np.argsort(-text, kind="stable").tolist():
        t, i = int(text[number]), int(image[number])
        for place in sorted(range(len(load)), key=load.__getitem__):
            if load[place] + t <= BUDGET.text and images[place] + i <= BUDGET.image:
                break
        else:
            place = len(load)
            members.append([])
            load.append(0)
            images.append(0)
        members[place].append(number)
        load[place] += t
        images[place] += i
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
    "next fit": (textbook(packing_textbook.next_fit), 1.0),
    f"first fit, {FEW_OPEN} open": (
        textbook(partial(packing_textbook.first_fit_of, most_open=FEW_OPEN)),
        1.0,
    ),
    "first fit": (textbook(packing_textbook.first_fit), 1.0),
    "first fit decreasing": (textbook(packing_textbook.first_fit_decreasing), 1.0),
    "best fit decreasing": (textbook(packing_textbook.best_fit_decreasing), 1.0),
    "nanoVLM's": (windowed(nanovlm), 0.1),
    "TRL, by text": (windowed(trl), 0.1),
    "binpacking, by text": (windowed(binpacking), 0.1),
}
"""Name → the way, and which part of the stream it is given: the slow ones a tenth."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Result of one way of packing, on the samples it was given.

    Attributes:
        bound, sized_bound: Lower bounds on the sequences: by sums, and with samples kept whole.
        apart, most_apart: From the first to the last sample of a sequence in the stream: median and most.
        grown_mb: Peak of the process' memory above what it had with the sizes in it.
    """

    samples: int
    sequences: int
    bound: int
    sized_bound: int
    text_fill: float
    image_fill: float
    over_budget: int
    apart: int
    most_apart: int
    cpu_seconds: float
    grown_mb: float


def measure(way: Callable[[Ints, Ints], Packed], text: Ints, image: Ints) -> Measured:
    """Packs, and checks that every sample is in one sequence; memory is what the process grew by."""
    seen, apart = np.zeros(len(text), bool), np.zeros(len(text), np.int32)
    seen[:], apart[:] = False, 0  # in memory before that is counted
    sequences = over = placed = 0
    before = _start_peak()
    began = time.process_time()
    for members in way(text, image):
        apart[sequences] = max(members) - min(members)
        sequences += 1
        placed += len(members)
        seen[members] = True
        over += int(text[members].sum() > BUDGET.text or image[members].sum() > BUDGET.image)
    seconds = time.process_time() - began
    grown = (_resident_kb("VmHWM") - before) / 1024
    assert seen.all(), "every sample is in a sequence"
    assert placed == len(text), "no sample is in two"
    total_text, total_image = int(text.sum()), int(image.sum())
    return Measured(
        samples=len(text),
        sequences=sequences,
        bound=lower_bound(total_text, total_image, BUDGET),
        sized_bound=sized_bound(text, image, BUDGET),
        text_fill=total_text / sequences / BUDGET.text,
        image_fill=total_image / sequences / BUDGET.image,
        over_budget=over,
        apart=int(np.median(apart[:sequences])),
        most_apart=int(apart.max()),
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
    """One table per mixture, and how ours fares as the stream grows."""
    lines = [
        "Lower bounds on the sequences: by sums, max(⌈Σtext / 2048⌉, ⌈Σimage / 20480⌉), and with",
        "samples kept whole (`sized_bound`). Sizes are simulated; `benchmarks/packing_sizes.py` states what",
        "is assumed. Processor time of one core, with checking every sequence. Ours, next fit and first fit",
        f"with {FEW_OPEN} open sequences read the stream once; the other textbook ways keep all of it, the",
        "rest see 4,096 samples at a time. Packing by text alone exceeds the image budget, in so many of its",
        "sequences, where images bind.",
        "",
    ]
    header = (
        "way|samples|sequences / bound|/ sized bound|text full|images full|over image budget"
        "|samples a minute|MB grown"
    )
    for mix, found in payload["mixes"].items():
        lines += [f"## {mix}", "", table(header.split("|"), [_row(*each) for each in found.items()])]
    rows = [
        [
            f"{own['samples']:,}",
            f"{own['sequences'] / own['bound']:.5f}",
            f"{own['samples'] / own['cpu_seconds'] * 60:,.0f}",
            f"{own['grown_mb']:.1f}",
            f"{own['apart']:,}",
            f"{own['most_apart']:,}",
        ]
        for own in payload["growth"]
    ]
    header = "samples|sequences / bound|samples a minute|MB grown|samples apart, median|at most"
    lines += [
        "## Ours, as the stream grows",
        "",
        table(header.split("|"), rows),
        f"Samples of one sequence always lie fewer than {REACH:,} places apart in the stream.",
        "",
        "![Fill and memory by length of the stream](packing.svg)",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, own: dict[str, Any] | str) -> list[str]:
    if isinstance(own, str):
        return [name, f"not installed: {own}", *[""] * 7]
    return [
        name,
        f"{own['samples']:,}",
        f"{own['sequences'] / own['bound']:.4f}",
        f"{own['sequences'] / own['sized_bound']:.4f}",
        f"{own['text_fill']:.2%}",
        f"{own['image_fill']:.2%}",
        f"{own['over_budget'] / own['sequences']:.1%}",
        f"{own['samples'] / own['cpu_seconds'] * 60:,.0f}",
        f"{own['grown_mb']:.0f}",
    ]


def drawing(growth: Sequence[dict[str, Any]]) -> str:
    """What ours costs above the bound, and its memory, by length of the stream."""

    def line(value: Callable[[dict[str, Any]], float]) -> list[Line]:
        return [Line(label="ours", points=[(own["samples"] / 1e6, value(own)) for own in growth])]

    x = "million samples"
    above = Panel(
        title="Sequences above the lower bound",
        x=x,
        y="in ten thousand",
        lines=line(lambda own: (own["sequences"] / own["bound"] - 1) * 1e4),
    )
    memory = Panel(title="Memory of packing", x=x, y="MB", lines=line(lambda own: own["grown_mb"]))
    return figure([above, memory], caption="Our packer's fill and memory as the stream grows")


def main(arguments: Sequence[str] | None = None) -> None:
    peers = ("", "folder with trl and binpacking")
    options = read_options(__doc__, arguments, samples=1_000_000, peers=peers)
    mixes: dict[str, dict[str, Any]] = {}
    for mix in MIXES:
        mixes[mix] = {}
        for name, (_, part) in WAYS.items():
            part = part if mix == "FineVision-like" else part * 0.2
            found = run(name, mix, max(int(options.samples * part), 1), options.peers)
            mixes[mix][name] = found if isinstance(found, str) else _values(found)
            print(mix, name, mixes[mix][name], flush=True)
    growth = []
    for count in (options.samples // 10, options.samples, 10 * options.samples):
        found = run("ours", "FineVision-like", count, options.peers)
        assert isinstance(found, Measured)
        growth.append(_values(found))
        print(growth[-1], flush=True)
    payload = {"mixes": mixes, "growth": growth}
    options.peers = "FOLDER"
    publish("packing", "Packing under two budgets", options, payload, report(payload))
    (options.results / "packing.svg").write_text(drawing(growth))


def _values(measured: Measured) -> dict[str, Any]:
    return {name: getattr(measured, name) for name in Measured.__slots__}


if __name__ == "__main__":
    main()
