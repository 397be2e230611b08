"""Memory of the clean stage over time, on a corpus four times its object store and its workers' limits.

python -m benchmarks.clean_memory [--pictures 200 --workers 2 --limit-mb 256]

The corpus has four times the bytes that the object store holds and all workers together may add to what they
start with. What is drawn: the private memory of the workers, without mapped files and the object store, and
what Ray Data keeps in the object store. The slopes are of the second half of the time, when all is warm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clean import OBJECT_STORE_MB, small_cluster, stage, store_stats
from benchmarks.clean_corpus import make_corpus
from benchmarks.measure import publish, read_options, slope
from benchmarks.plot import Line, Panel, figure

_MB = 1 << 20
_EVERY = 0.25


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        pictures=(200, "different pictures"),
        workers=2,
        limit_mb=(256, "private memory a worker may add"),
        folder=Path("/tmp/casa-benchmark-clean"),
    )
    found = measure(options.folder, options.pictures, options.workers, options.limit_mb)
    panel = Panel(
        title=f"{found['corpus_mb']:,.0f} MiB cleaned with {OBJECT_STORE_MB} MiB of object store",
        x="seconds",
        y="MiB",
        lines=[
            Line(label="workers' private memory", points=found["private_mb"]),
            Line(label="object store in use", points=found["object_store_mb"]),
            Line(label="what they may use", points=[(x, found["limit_mb"]) for x, _ in found["private_mb"]]),
        ],
    )
    options.results.mkdir(parents=True, exist_ok=True)
    caption = "Memory of the workers and use of the object store while a corpus is cleaned."
    (options.results / "clean_memory.svg").write_text(figure([panel], caption=caption))
    publish("clean_memory", "Memory of cleaning over time", options, found, _report(found))


def measure(folder: Path, pictures: int, workers: int, limit_mb: int) -> dict[str, Any]:
    """Cleans the corpus once; memory as (seconds, MiB)."""
    limit = OBJECT_STORE_MB + workers * limit_mb
    probe = folder / f"{pictures}x1"
    make_corpus(probe, pictures, 1)
    repeats = -(-4 * limit * _MB // _bytes(probe))
    corpus = folder / f"{pictures}x{repeats}"
    make_corpus(corpus, pictures, repeats)
    samples: list[tuple[float, float, float]] = []
    done = threading.Event()

    def watch() -> None:
        began = time.perf_counter()
        while not done.wait(_EVERY):
            samples.append(
                (time.perf_counter() - began, _private() / _MB, store_stats().object_store_bytes_used / _MB)
            )

    with small_cluster(workers, limit_mb):
        stage(probe, folder / "out", workers)  # imports and first buffers are no part of the picture
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        stage(corpus, folder / "out", workers)
        done.set()
        thread.join()
        spilled = store_stats().spilled_bytes_total / _MB
    late = samples[len(samples) // 2 :]
    return {
        "corpus_mb": _bytes(corpus) / _MB,
        "limit_mb": limit,
        "private_mb": [(at, private) for at, private, _ in samples],
        "object_store_mb": [(at, store) for at, _, store in samples],
        "growth_mb_per_minute": slope([at / 60 for at, *_ in late], [own for _, own, _ in late]).value,
        "spilled_mb": spilled,
    }


def _bytes(corpus: Path) -> int:
    return sum(path.stat().st_size for path in (corpus / "parquet").iterdir())


def _private() -> int:
    """Private memory of all processes that clean, or wait to."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith(("ray::ReadCleanS", "ray::IDLE")):
                memory = process.memory_info()
                total += memory.rss - memory.shared
        except psutil.NoSuchProcess:
            continue
    return total


def _report(found: dict[str, Any]) -> str:
    private = [value for _, value in found["private_mb"]]
    store = [value for _, value in found["object_store_mb"]]
    return (
        "![memory over time](clean_memory.svg)\n\n"
        f"A corpus of {found['corpus_mb']:,.0f} MiB, four times the {found['limit_mb']:,.0f} MiB of object "
        "store and of memory that all workers may add. Private memory of the workers together: "
        f"{private[0]:,.0f} MiB at the start, {max(private):,.0f} MiB at most, {private[-1]:,.0f} MiB at the "
        f"end; in the second half it grew by {found['growth_mb_per_minute']:.1f} MiB a minute. Object store "
        f"in use: {max(store):.1f} MiB at most; {found['spilled_mb']:.1f} MiB were spilled.\n"
    )


if __name__ == "__main__":
    main()
