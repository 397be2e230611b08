"""Measuring for all benchmarks: memory, interleaved timing, slopes with intervals, results as files."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def options_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser of a benchmark's command line; ``options`` as in :func:`add_options`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, **options)
    return parser


def add_options(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add options by name: each its default, of whose type it is, or that and a text that explains it.

    One whose default is ``False`` takes no value: it is a switch.
    """
    for name, option in options.items():
        default, text = option if isinstance(option, tuple) else (option, None)
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=text)


def read_options(
    description: str | None, arguments: Sequence[str] | None, **options: Any
) -> argparse.Namespace:
    """A benchmark's options, and ``results``, the folder of its results, which is made at once: what was
    measured is not lost for want of it. Torch gets one thread."""
    torch.set_num_threads(1)
    found = options_parser(description, **options, results=RESULTS).parse_args(arguments)
    found.results.mkdir(parents=True, exist_ok=True)
    return found


def resident_bytes() -> int:
    """Resident memory of this process (Linux), after garbage collection and return of free heap pages."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine() -> str:
    """The machine on one line: processor, cores, load average, version and threads of torch."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {os.cpu_count()} cores (load {load:.1f} at the end), torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread"
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of a command, one entry per round: wall-clock time and processor time."""

    wall: list[float]
    cpu: list[float]


def interleaved(commands: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Taken]:
    """Time commands in turns, so that a machine whose speed drifts slows all alike.

    Each round begins with another command; the first round warms up and does not count.
    """
    taken = {name: Taken([], []) for name in commands}
    names = list(commands)
    for number in range(rounds + 1):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            wall, cpu = time.perf_counter(), time.process_time()
            commands[name]()
            if number:
                taken[name].wall.append(time.perf_counter() - wall)
                taken[name].cpu.append(time.process_time() - cpu)
    return taken


@dataclass(frozen=True, slots=True)
class Slope:
    """A rate of growth with its 95 % interval, in the measure's unit per step."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Slope:
        """The slope in another unit, ``factor`` times this one's value."""
        return Slope(self.value * factor, self.low * factor, self.high * factor)


def slope(
    steps: Sequence[float], values: Sequence[float], *, block: int = 25, robust: bool = True, seed: int = 0
) -> Slope:
    """Growth of a series, with an interval from a block bootstrap, because neighbours are correlated.

    Args:
        steps, values: The series, in order.
        block: Points per block; a last, smaller block is left out unless it is the only one.
        robust: Theil–Sen through the blocks' medians, which outliers of a busy machine do not move; otherwise
            least squares through all points, for what grows in rare large steps.
        seed: Seed of the bootstrap.
    """
    count, block = max(len(steps) // block, 1), min(block, len(steps))
    blocks = lambda series: np.asarray(series, dtype=float)[: count * block].reshape(count, block)  # noqa: E731
    x, y = blocks(steps), blocks(values)
    if robust:
        x, y = np.median(x, axis=1), np.median(y, axis=1)
    fit = _theil_sen if robust else _least_squares
    draws = np.random.default_rng(seed).integers(0, count, (1000, count))
    estimates = [fit(x[draw], y[draw]) for draw in draws]
    low, high = np.nanpercentile(estimates, [2.5, 97.5]) if count > 2 else (float("nan"), float("nan"))
    return Slope(fit(x, y), float(low), float(high))


def _theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """Median of the slopes of all pairs."""
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    if not apart.any():
        return float("nan")
    return float(np.median(((y[second] - y[first])[apart]) / (x[second] - x[first])[apart]))


def _least_squares(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.flatten() - x.mean(), y.flatten() - y.mean()
    return float((x @ y) / (x @ x)) if x.any() else float("nan")


def write_result(name: str, payload: Mapping[str, Any], text: str, folder: Path = RESULTS) -> None:
    """Write ``name.json`` and ``name.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_plain(payload), indent=1, allow_nan=False) + "\n")
    (folder / f"{name}.md").write_text(text)


def heading(origin: Mapping[str, Any]) -> str:
    """The line below a result's title: how, when and on what it was measured."""
    return f"`{origin['command']}`, {origin['date']}, {origin['machine']}. Options: {origin['options']}.\n"


def publish(
    name: str,
    title: str,
    options: argparse.Namespace,
    payload: Mapping[str, Any],
    text: str,
    command: str | None = None,
) -> None:
    """Print a benchmark's result, and write it under its title with what it was measured on.

    Args:
        name: Stem of the files.
        title: Title of the page.
        options: The command's options; ``results`` is the folder of the files.
        payload: The numbers, as JSON.
        text: The numbers, as Markdown.
        command: Module in ``benchmarks`` and its subcommand, where they are not ``name``.
    """
    origin = stamp(f"python -m benchmarks.{command or name}", vars(options))
    page = f"# {title}\n\n{heading(origin)}\n{text}"
    write_result(name, {**origin, **payload}, page, options.results)
    print(text)


def _plain(value: Any) -> Any:
    """The value with ``None`` for numbers that JSON cannot hold: NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stamp(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What every result states: command, date, machine, options."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(),
        "options": {key: value for key, value in options.items() if isinstance(value, str | int | float)},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [
        f"| {' | '.join(header)} |",
        f"|{'|'.join(['---', *['---:'] * (len(header) - 1)])}|",
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
