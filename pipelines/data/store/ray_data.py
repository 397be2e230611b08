"""A shard pipeline on Ray Data: reading, converting and writing as one fused task per shard.

Fusion decides the cost: rows stay in the worker, and only a result of some hundred bytes travels. Ray Data
fuses the steps where all have the same pool of tasks and the same resources, and where there are as many
blocks as read tasks (it would split them otherwise). A test looks at the plan that was executed.

The write is a third ``map_batches`` and not ``write_datasink``. That one keeps every block of its task, a
whole shard, until the task ends, to count their rows; and it hands over its results after the last task, so
that neither progress nor a spent failure budget shows earlier. Ray Data's checkpoints replace no shard
reports: they are by row id, read all input again, and are exact for file sinks only.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import pyarrow as pa
from ray.data import DataContext, Dataset, Datasource, TaskPoolStrategy, read_datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import OutOfMemoryError, RayTaskError

from casa_core.errors import CasaError
from pipelines.data.store.shard_pipeline import (
    Convert,
    ShardPipeline,
    Tasks,
    Write,
    framed_records,
    results_of,
)

Task = TypeVar("Task")


def run_on_ray(
    pipeline: ShardPipeline[Task], tasks: Tasks[Task], names: Sequence[str], workers: int
) -> Generator[tuple[str, bytes]]:
    """Carries tasks through a pipeline; yields name and result of each as it is done.

    Closing the iterator cancels what runs. Ray Data gives the task of a lost process or node to another.

    Raises:
        CasaError: As a step raised it; :class:`ClusterError` where memory ran out. Any other error as it was.
    """
    found = 0
    try:
        with closing(_results(shard_dataset(pipeline, tasks, names, workers))) as results:
            for result in results:
                found += 1
                yield result
    except RayTaskError as error:
        raise pipeline.explained(original_error(error.cause)) from error
    except OutOfMemoryError as error:
        raise pipeline.explained(MemoryError(str(error))) from error
    assert found == len(names), "every task has one result"


def shard_dataset(
    pipeline: ShardPipeline[Task], tasks: Tasks[Task], names: Sequence[str], workers: int
) -> Dataset:
    """The pipeline as a dataset of ``RESULT_SCHEMA``, not executed yet."""
    context = quiet_context()
    context.target_max_block_size = pipeline.block_bytes
    pool = {"compute": TaskPoolStrategy(size=min(workers, len(names))), "num_cpus": 1}
    batches = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    with DataContext.current(context):
        records = read_datasource(Shards(pipeline, tasks, names), override_num_blocks=len(names), **pool)
        rows = records.map_batches(Convert(pipeline), **batches, **pool)
        return rows.map_batches(Write(pipeline), **batches, **pool)


def quiet_context() -> DataContext:
    """A copy of Ray Data's settings: no bars and no log lines between ours, errors as they were raised."""
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # Ray Data's own; its other writes a file in Ray's session folder
            handler.setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    return context


def original_error(error: BaseException) -> BaseException:
    """The error as a mapped function raised it: Ray Data appends advice of its own to the first argument."""
    if not isinstance(error, CasaError):
        return error
    return type(error)(*(str(argument).partition("\nFailed to apply UDF")[0] for argument in error.args))


class Shards(Datasource):
    """The tasks as a source of Ray Data: one read task per shard, whatever parallelism it asks for."""

    def __init__(self, pipeline: ShardPipeline[Any], tasks: Tasks[Any], names: Sequence[str]) -> None:
        super().__init__()
        self._pipeline, self._tasks, self._names = pipeline, tasks, names

    def get_name(self) -> str:
        """Part of the names of operators and processes."""
        return type(self._pipeline).__name__

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown; by a size, Ray Data would cut the tasks."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """One per shard, in the order of the plan."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_Read(self._pipeline, self._tasks, name), unknown) for name in self._names]


class _Read:
    """Reads one shard. Its task is made when it is pickled: Ray Data asks for all of them several times."""

    __name__ = "read_shard"  # Ray Data asks for it where a task is large

    def __init__(self, pipeline: ShardPipeline[Any], tasks: Tasks[Any], name: str) -> None:
        self._pipeline, self._tasks, self._name = pipeline, tasks, name

    def __reduce__(self) -> tuple[Any, ...]:
        return _Read, (self._pipeline, {self._name: self._tasks[self._name]}, self._name)

    def __call__(self) -> Iterator[pa.Table]:
        return framed_records(self._pipeline, self._name, self._tasks[self._name])


def _results(dataset: Dataset) -> Generator[tuple[str, bytes]]:
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from results_of(table)
