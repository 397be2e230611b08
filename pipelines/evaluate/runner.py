"""Runs questions through workers, on this machine or a Ray cluster, and keeps every answer as it comes.

A run that was ended at any instant goes on where it was: answers are kept by what they depend on
(:mod:`pipelines.evaluate.kept.answers`), and only questions without one are asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa

from casa_core.errors import ClusterError
from pipelines.evaluate.kept.answers import Answer, AnswerStore, answer_of_row
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.worker import AT_A_TIME, CHUNKS, AnswerWorker, QuestionSource, chunk_table

KEPT_EVERY_S = 5.0
"""Answers of so many seconds are asked for again after a crash, at most."""

Row = dict[str, Any]
Worker = Callable[[pa.Table], pa.Table]


def answer_all(
    model: Model,
    sources: Mapping[str, QuestionSource],
    store: AnswerStore,
    *,
    workers: int = 1,
    gpus: float = 0.0,
    on_ray: bool = False,
    chunk: int = 32,
    on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Answer all questions of all benchmarks.

    Args:
        sources: The benchmarks' questions, by name.
        store: Where answers are kept, and found again.
        workers: Engines, each with one CPU.
        gpus: GPUs of each.
        on_ray: Whether workers are actors of the Ray cluster that this process has joined, or one worker is
            in this process.
        chunk: Questions that a worker is given together.
        on_rows: Called with new rows as they come.

    Raises:
        CasaError: As a source or an engine raises it.

    Returns:
        Rows of ``pipelines.evaluate.worker.ROWS``, by benchmark in the order given, and index.
    """
    chunks = chunk_table(sources, chunk)
    if on_ray:
        batches = _on_ray(model, sources, store, chunks, workers, gpus)
    else:
        batches = _here(AnswerWorker(model, sources, store), chunks)
    rows: list[Row] = []
    keeping = _Keeping(store)
    try:
        with closing(batches):
            for batch in batches:
                new = batch.to_pylist()
                rows += new
                keeping.add(new)
                on_rows(new)
    finally:
        keeping.finish()
    names = list(sources)
    return sorted(rows, key=lambda row: (names.index(row["benchmark"]), row["index"]))


class _Keeping:
    """Writes answers to the store every few seconds."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store
        self._waiting: list[tuple[str, Answer]] = []
        self._written = time.monotonic()

    def add(self, rows: Sequence[Row]) -> None:
        self._waiting += [
            (row["key"], answer_of_row(row, text=row["answer"]))
            for row in rows
            if not row["reused"] and not row["error"]
        ]
        if time.monotonic() > self._written + KEPT_EVERY_S:
            self._write()

    def finish(self) -> None:
        self._write()
        self._store.merge()

    def _write(self) -> None:
        self._store.add(self._waiting)
        self._waiting, self._written = [], time.monotonic()


def _here(worker: Worker, chunks: Sequence[Row]) -> Generator[pa.Table]:
    """One worker in this process, with as many chunks in hand as one on Ray."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        waiting = iter(chunks)
        running = {pool.submit(worker, _table(one)) for one in islice(waiting, AT_A_TIME)}
        while running:
            done = next(as_completed(running))
            running.remove(done)
            if (following := next(waiting, None)) is not None:
                running.add(pool.submit(worker, _table(following)))
            yield done.result()


def _table(chunk: Row) -> pa.Table:
    return pa.Table.from_pylist([chunk], CHUNKS)


def _on_ray(
    model: Model,
    sources: Mapping[str, QuestionSource],
    store: AnswerStore,
    chunks: Sequence[Row],
    workers: int,
    gpus: float,
) -> Generator[pa.Table]:
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayError, RayTaskError

    from pipelines.data.store.ray_data import original_error, quiet_context

    if not chunks:
        return
    try:
        with ray.data.DataContext.current(quiet_context()):
            # One block per chunk: the pool gives a chunk to the first worker that has room.
            dataset = ray.data.from_items(list(chunks), override_num_blocks=len(chunks)).map_batches(
                AnswerWorker,
                fn_constructor_args=(model, dict(sources), store),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    size=min(workers, len(chunks)),
                    max_tasks_in_flight_per_actor=4,
                    max_concurrent_calls_per_actor=AT_A_TIME,
                ),
                num_cpus=1,
                num_gpus=gpus,
            )
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayTaskError as error:
        raise original_error(error.cause) from error
    except RayError as error:
        raise ClusterError(
            "Ray could not go on with the evaluation.",
            f"Its reason: {' '.join(str(error).split()).rstrip('.')}.",
            "Run the command again: the answers so far are kept. Where it happens again, free memory or ask "
            "for fewer --workers.",
        ) from error
