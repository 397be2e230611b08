"""The clean stage on Ray Data beside plain Ray tasks and beside a bare loop that decodes the same pictures.

python -m benchmarks.clean [--pictures 800 --records 8000 --more 80000 --rounds 2 --workers 2]

The loop reads single files and calls Pillow's ``load``; nothing is hashed, checked or written. It is run
twice over: decoding in full, and reading JPEGs as the stage does (all coefficients, pixels at an eighth of
the size), so that the stage's own cost shows. The plain tasks clean a shard each, as the stage did before Ray
Data carried it: record by record, into the same files. The stage reads parquet, verifies, hashes and writes
Arrow, as a recipe runs it, on a real Ray with a small object store and workers whose private memory is
limited. All take turns in one run, over two corpora: the difference gives the cost of one more record, the
rest is fixed. Ray's own start is timed apart. Where others use the machine, compare processor time.
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
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from PIL import Image

from benchmarks.clean_corpus import make_corpus, picture_paths, stream_order
from benchmarks.measure import publish, read_options, table
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.clean.records import clean_record
from pipelines.data.read import Reader, Record, open_reader
from pipelines.data.store.quarantine import Rejected, write_quarantine
from pipelines.data.store.rows import CLEAN_SCHEMA, CleanSample, Row
from pipelines.data.store.shard_writing import write_json, write_shard

OBJECT_STORE_MB = 80
FULL, AS_OURS = "loop: decoded in full", "loop: JPEGs at an eighth"
PLAIN, OURS = "plain Ray tasks", "clean stage on Ray Data"


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        pictures=(800, "different pictures"),
        records=(8000, "records of the smaller corpus, a multiple of the pictures"),
        more=(80000, "records of the larger corpus"),
        rounds=2,
        workers=2,
        limit_mb=(512, "private memory a worker may add"),
        folder=Path("/tmp/casa-benchmark-clean"),
    )
    found = measure(options)
    publish("clean", "Cleaning beside the decoding of the same pictures", options, found, _report(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each over both corpora, in turns, and what the stage needed."""
    output, sizes = options.folder / "out", (options.records, options.more)
    commands: dict[tuple[str, int], Any] = {}
    for records in sizes:
        repeats = records // options.pictures
        corpus = options.folder / f"{options.pictures}x{repeats}"
        make_corpus(corpus, options.pictures, repeats)
        paths = picture_paths(corpus, options.pictures)
        files = [str(paths[number]) for number in stream_order(options.pictures, repeats)]
        commands |= {
            (FULL, records): partial(floor, files, options.workers, draft=False),
            (AS_OURS, records): partial(floor, files, options.workers, draft=True),
            (PLAIN, records): partial(plain_tasks, corpus, output, options.workers),
            (OURS, records): partial(stage, corpus, output, options.workers),
        }
    began = time.perf_counter()
    taken: dict[tuple[str, int], list[_Watched]] = {name: [] for name in commands}
    with small_cluster(options.workers, options.limit_mb):
        ray_start = time.perf_counter() - began
        stage(options.folder / f"{options.pictures}x{options.records // options.pictures}", output, 1)  # warm
        for number in range(options.rounds):
            for name, command in reversed(commands.items()) if number % 2 else commands.items():
                shutil.rmtree(output, ignore_errors=True)
                with _Watched() as watched:
                    command()
                taken[name].append(watched)
        spilled = store_stats().spilled_bytes_total / 2**20
    return {
        "records": sizes,
        "wall": _nested({name: [one.wall for one in rounds] for name, rounds in taken.items()}),
        "cpu": _nested({name: [one.cpu for one in rounds] for name, rounds in taken.items()}),
        "ray_start_seconds": ray_start,
        "object_store_mb": OBJECT_STORE_MB,
        "spilled_mb": spilled,
        "peak_private_mb": max(one.peak for own in sizes for one in taken[OURS, own]) / 2**20,
        "limit_mb": options.limit_mb,
    }


def _nested(values: dict[tuple[str, int], list[float]]) -> dict[str, dict[str, list[float]]]:
    """By name, then by number of records."""
    found: dict[str, dict[str, list[float]]] = {}
    for (name, records), own in values.items():
        found.setdefault(name, {})[str(records)] = own
    return found


def floor(files: Sequence[str], workers: int, *, draft: bool) -> None:
    """Opens and decodes all files in a pool of processes."""
    work = _decode_reduced if draft else _decode
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        decoded = sum(pool.imap_unordered(work, files, chunksize=32))
        time.sleep(0.5)  # while they are still there, their processor time is looked at
    assert decoded == len(files)


def plain_tasks(corpus: Path, output: Path, workers: int) -> None:
    """A Ray task per shard, which cleans it record by record; as many at a time as there are workers."""
    output.mkdir(parents=True)
    reader = open_reader("finevision", str(corpus / "parquet"), "rendered", {})
    task = ray.remote(num_cpus=1)(_plain_shard)
    waiting, running = clean.plan(reader), []
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(task.remote(reader, waiting.pop(0), output))
        done, running = ray.wait(running)
        ray.get(done)


def _plain_shard(reader: Reader, task: clean.ShardTask, output: Path) -> None:
    rejected: list[Rejected] = []

    def rows() -> Iterator[Row]:
        for span in task.spans:
            for record in reader.read(span):
                cleaned = clean_record(record) if isinstance(record, Record) else record
                if isinstance(cleaned, CleanSample):
                    yield cleaned.to_row()
                else:
                    rejected.append(cleaned)

    count = write_shard(output / f"{task.name}.arrow", CLEAN_SCHEMA, rows(), size_of=_media_bytes)
    write_quarantine(output / f"{task.name}.parquet", rejected)
    write_json(output / f"{task.name}.json", {"rows": count})


def _media_bytes(row: Row) -> int:
    return sum(len(media["bytes"]) for media in row["media"])


def stage(corpus: Path, output: Path, workers: int) -> None:
    """The clean stage, from its plan to its card."""
    shutil.rmtree(output, ignore_errors=True)
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
def small_cluster(workers: int, limit_mb: int) -> Iterator[None]:
    """A Ray of this run alone, whose workers may add only so much private memory to what they start with."""
    limit = limit_mb << 20

    def limit_memory() -> None:
        import pipelines.data.store.ray_data  # noqa: F401 (what a worker imports is no part of the limit)

        own = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (own + limit, own + limit))

    ray.init(
        address="local",
        num_cpus=workers,
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


def store_stats() -> Any:
    """Ray's own counts of its object store: ``object_store_bytes_used``, ``spilled_bytes_total``, …"""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats


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
                if process.name().startswith(("ray::ReadCleanS", "ray::IDLE")):
                    self.peak = max(self.peak, memory.rss - memory.shared)
            except psutil.NoSuchProcess:
                continue


def _report(found: dict[str, Any]) -> str:
    small, large = found["records"]
    middle = {
        kind: {
            name: [statistics.median(own[str(records)]) for records in (small, large)]
            for name, own in found[kind].items()
        }
        for kind in ("wall", "cpu")
    }
    text = "Medians; single runs in `clean.json`. Processor time includes Ray's own services.\n"
    for kind, title in (("wall", "Seconds"), ("cpu", "Processor seconds")):
        marginal = {name: (own[1] - own[0]) / (large - small) for name, own in middle[kind].items()}
        rows = [
            [
                name,
                *(f"{seconds:.1f}" for seconds in own),
                f"{own[0] - marginal[name] * small:.1f}",
                f"{1000 * marginal[name]:.2f}",
                f"{marginal[name] / marginal[PLAIN]:.3f}",
                f"{middle[kind][FULL][1] / own[1]:.2f}",
            ]
            for name, own in middle[kind].items()
        ]
        header = [
            title,
            f"{small:,} records",
            f"{large:,} records",
            "fixed",
            "ms a record more",
            "of plain tasks'",
            f"speed at {large:,}, loop = 1",
        ]
        text += "\n" + table(header, rows)
    return text + (
        f"\nRay's start, not counted above: {found['ray_start_seconds']:.1f} s. Its object store: "
        f"{found['object_store_mb']} MiB; {found['spilled_mb']:.1f} MiB were spilled to the disk. Largest "
        f"private memory of a worker: {found['peak_private_mb']:.0f} MiB; each could add "
        f"{found['limit_mb']} MiB to what it started with (RLIMIT_DATA).\n"
    )


if __name__ == "__main__":
    main()
