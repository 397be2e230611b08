"""The clean stage beside its floor: a bare loop that opens and decodes the same pictures, on as many cores.

python -m benchmarks.clean [--pictures 800 --repeats 12 --rounds 2 --workers 2]

The floor reads single files and calls Pillow's ``load``; nothing is hashed, checked or written. It is run
twice over: decoding in full, and reading JPEGs as the stage does (all coefficients, pixels at an eighth of
the size), so that the stage's own cost shows. The stage reads parquet, verifies, hashes and writes Arrow, as
a recipe runs it, on a real Ray with a small object store and workers whose private memory is limited. The two
take turns in one run; Ray's own start is timed apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from PIL import Image

from benchmarks.clean_corpus import make_corpus, picture_paths, stream_order
from benchmarks.measure import publish, read_options, table
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean

OBJECT_STORE_MB = 80
FULL, AS_OURS, OURS = "floor: decoded in full", "floor: JPEGs at an eighth", "clean stage"


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        pictures=(800, "different pictures"),
        repeats=(12, "how often each occurs"),
        rounds=2,
        workers=2,
        limit_mb=(512, "private memory a worker may add"),
        folder=Path("/tmp/casa-benchmark-clean"),
    )
    corpus = options.folder / f"{options.pictures}x{options.repeats}"
    make_corpus(corpus, options.pictures, options.repeats)
    found = measure(corpus, options)
    publish("clean", "Cleaning beside the decoding of the same pictures", options, found, _report(found))


def measure(corpus: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, in turns, and what the stage needed."""
    paths = picture_paths(corpus, options.pictures)
    files = [str(paths[number]) for number in stream_order(options.pictures, options.repeats)]
    commands = {
        FULL: lambda: floor(files, options.workers, draft=False),
        AS_OURS: lambda: floor(files, options.workers, draft=True),
        OURS: lambda: stage(corpus, options.folder / "out", options.workers),
    }
    began = time.perf_counter()
    taken: dict[str, list[_Watched]] = {name: [] for name in commands}
    with _cluster(options):
        ray_start = time.perf_counter() - began
        for _ in range(options.rounds):
            for name, command in commands.items():
                shutil.rmtree(options.folder / "out", ignore_errors=True)
                with _Watched() as watched:
                    command()
                taken[name].append(watched)
        spilled = _spilled_mb()
    return {
        "records": len(files),
        "corpus_mb": sum(path.stat().st_size for path in (corpus / "parquet").iterdir()) / 2**20,
        "wall": {name: [one.wall for one in rounds] for name, rounds in taken.items()},
        "cpu": {name: [one.cpu for one in rounds] for name, rounds in taken.items()},
        "ray_start_seconds": ray_start,
        "object_store_mb": OBJECT_STORE_MB,
        "spilled_mb": spilled,
        "peak_private_mb": max(one.peak for one in taken[OURS]) / 2**20,
        "limit_mb": options.limit_mb,
    }


def floor(files: Sequence[str], workers: int, *, draft: bool) -> None:
    """Opens and decodes all files in a pool of processes."""
    work = _decode_reduced if draft else _decode
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        decoded = sum(pool.imap_unordered(work, files, chunksize=32))
        time.sleep(0.5)  # while they are still there, their processor time is looked at
    assert decoded == len(files)


def stage(corpus: Path, output: Path, workers: int) -> None:
    """The clean stage, from its plan to its card."""
    output.mkdir(parents=True)
    what = {
        "source": "rendered",
        "reader": "finevision",
        "path": str(corpus / "parquet"),
        "max_failures": 0.0,
    }
    where = {"data": {"workers": workers}}
    clean.run_stage(StageContext(name="clean", settings=what, placement=where, output=output))


def _decode(path: str) -> int:
    with Image.open(path) as image:
        image.load()
    return 1


def _decode_reduced(path: str) -> int:
    with Image.open(path) as image:
        image.draft("L", (72, 64))
        image.load()
    return 1


@contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[None]:
    """A Ray of this run alone, whose workers may add only so much private memory to what they start with."""
    limit = options.limit_mb << 20

    def limit_memory() -> None:
        own = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (own + limit, own + limit))

    ray.init(
        address="local",
        num_cpus=options.workers,
        object_store_memory=OBJECT_STORE_MB << 20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": limit_memory},
    )
    try:
        yield
    finally:
        ray.shutdown()


def _spilled_mb() -> float:
    """What Ray moved from its object store to the disk since it started, as its raylet counts it."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.spilled_bytes_total / 2**20


class _Watched:
    """Seconds, processor time and memory of the block, all processes under this one included.

    Attributes:
        wall: Seconds.
        cpu: Seconds of processors, of every process that was seen: Ray's own services are part of the cost.
        peak: Largest private memory of a Ray worker, bytes: without mapped files and the object store.
    """

    def __enter__(self) -> _Watched:
        self.peak, self._began = 0, time.perf_counter()
        self._cpu: dict[int, float] = {}
        self._look()
        self._before = dict(self._cpu)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._began
        self._done.set()
        self._thread.join()
        self.cpu = sum(used - self._before.get(pid, 0.0) for pid, used in self._cpu.items())

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self._look()
        self._look()

    def _look(self) -> None:
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                times, memory = process.cpu_times(), process.memory_info()
                self._cpu[process.pid] = times.user + times.system
                if process.name().startswith(("ray::_clean", "ray::IDLE")):
                    self.peak = max(self.peak, memory.rss - memory.shared)
            except psutil.NoSuchProcess:
                continue


def _report(found: dict[str, Any]) -> str:
    records = found["records"]
    middle = {
        kind: {name: statistics.median(rounds) for name, rounds in found[kind].items()}
        for kind in ("wall", "cpu")
    }
    rows = [
        [
            name,
            f"{middle['wall'][name]:.1f}",
            f"{records / middle['wall'][name]:,.0f}",
            f"{middle['wall'][FULL] / middle['wall'][name]:.2f}",
            f"{middle['wall'][AS_OURS] / middle['wall'][name]:.2f}",
            f"{middle['cpu'][name]:.1f}",
            f"{middle['cpu'][FULL] / middle['cpu'][name]:.2f}",
        ]
        for name in middle["wall"]
    ]
    header = [
        "",
        "seconds",
        "records/s",
        "full floor = 1",
        "floor at an eighth = 1",
        "processor s",
        "full floor = 1",
    ]
    return (
        f"{records:,} records, {found['corpus_mb']:,.0f} MiB. Medians; single runs in `clean.json`. Higher "
        "ratios are faster. Processor time includes Ray's own services.\n\n"
        + table(header, rows)
        + f"\nRay's start, not counted above: {found['ray_start_seconds']:.1f} s. Its object store: "
        f"{found['object_store_mb']} MiB; {found['spilled_mb']:.1f} MiB were spilled to the disk. Largest "
        f"private memory of a worker: {found['peak_private_mb']:.0f} MiB; each could add "
        f"{found['limit_mb']} MiB to what it started with (RLIMIT_DATA).\n"
    )


if __name__ == "__main__":
    main()
