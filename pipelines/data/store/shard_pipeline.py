"""Shards made by three pure steps: read the rows of a task, convert them, write the shard and its report.

A :class:`ShardPipeline` holds the steps, and a :data:`Run` carries rows through them: :func:`run_here` in
this process, ``ray_data.py`` on a cluster. Rows travel as Arrow tables of some megabytes, those of one task
in order. The first row of a task carries its name and the last row closes it, so that an empty shard is
written, too, and a shard whose rows went astray is never taken for whole.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from casa_core.errors import CasaError, ClusterError
from pipelines.data.store.shard_writing import json_bytes
from pipelines.storage.atomic import write_whole
from pipelines.storage.json_files import read_json
from pipelines.storage.uri import Folder

REPORTS = ".reports"
"""Folder of the reports in an unfinished artifact; removed when the artifact is whole."""
BLOCK_BYTES = 16 << 20
RESULT_SCHEMA = pa.schema([("task", pa.string()), ("result", pa.large_binary())])
"""What comes out of a pipeline: one row per task."""
_FRAME = "task"
_END = ""
_REQUESTS = 16

Task = TypeVar("Task")


class Sink(Protocol):
    """Takes the converted rows of one task."""

    def add(self, rows: pa.Table) -> None:
        """Takes rows that follow those before."""
        ...

    def finish(self) -> bytes:
        """Completes the task after its last row; returns the result for the driver."""
        ...

    def abort(self) -> None:
        """Discards what was written."""
        ...


class ShardPipeline(ABC, Generic[Task]):
    """The three steps; picklable, and without state: a worker that is lost has its task done by another.

    Attributes:
        activity: What a worker does, for messages: ``"cleaned the source 'photos'"``.
        remedy: What helps where its memory does not suffice.
        records: Schema of what ``read`` yields.
        rows: Schema of what ``convert`` yields.
        block_bytes: Tables are joined or cut to about this size between the steps: each holds two or three.
    """

    activity: str
    remedy: str
    records: pa.Schema
    rows: pa.Schema
    block_bytes = BLOCK_BYTES

    @abstractmethod
    def read(self, task: Task) -> Iterator[pa.Table]:
        """The task's records in order; tables of at most a few megabytes, where a record is not larger."""

    @abstractmethod
    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        """Rows for some records, in order; a function of each record alone."""

    @abstractmethod
    def open(self, name: str) -> Sink:
        """Begins the shard of the task of that name."""

    def explained(self, error: BaseException) -> BaseException:
        """The error as a user should see it: what is no fault of any record, with its remedy."""
        if isinstance(error, CasaError) or not isinstance(error, MemoryError):
            return error
        return ClusterError(
            f"A worker ran out of memory while it {self.activity}.",
            f"{type(error).__name__}: {error}.",
            f"{self.remedy} Finished shards are kept.",
        )


Tasks = Mapping[str, Task]
"""Tasks by the names of their shards; one that is large may be made when it is asked for."""
Run = Callable[[ShardPipeline[Any], Tasks[Any], Sequence[str]], Generator[tuple[str, bytes]]]
"""Carries the tasks of the given names through a pipeline; yields name and result of each as it is done."""


def run_here(
    pipeline: ShardPipeline[Task], tasks: Tasks[Task], names: Sequence[str]
) -> Generator[tuple[str, bytes]]:
    """The run in this process, one task after another."""
    for name in names:
        try:
            with closing(Write(pipeline)) as write:
                for records in framed_records(pipeline, name, tasks[name]):
                    for rows in Convert(pipeline)(records):
                        yield from results_of(write(rows))
        except MemoryError as error:
            raise pipeline.explained(error) from error


def results_of(table: pa.Table) -> Generator[tuple[str, bytes]]:
    """Name and result of each task, from a table of ``RESULT_SCHEMA``."""
    yield from zip(table.column("task").to_pylist(), table.column("result").to_pylist(), strict=True)


def write_shards(
    run: Run, pipeline: ShardPipeline[Any], tasks: Tasks[Any], output: Folder
) -> Generator[tuple[str, dict[str, Any]]]:
    """Writes the shards that are missing; yields name and report of every shard as it is done.

    A shard whose report lies in ``output`` is whole, and its report is taken from there.
    """
    folder = output / REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    found = {path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json")}
    done = [name for name in tasks if name in found]
    with ThreadPoolExecutor(_REQUESTS) as threads:
        reports = threads.map(lambda name: read_json(folder / f"{name}.json", dict), done)
        for name, report in zip(done, reports, strict=True):
            if report is None:  # damaged: the shard is made again
                found.remove(name)
            else:
                yield name, report
    missing = [name for name in tasks if name not in found]
    if missing:
        with closing(run(pipeline, tasks, missing)) as results:
            yield from ((name, json.loads(result)) for name, result in results)


def write_report(output: Folder, name: str, report: Mapping[str, Any]) -> bytes:
    """Writes a shard's report, which declares the shard whole; returns it, as a sink's result."""
    data = json_bytes(report)
    write_whole(output / REPORTS / f"{name}.json", data)
    return data


def framed_records(pipeline: ShardPipeline[Task], name: str, task: Task) -> Iterator[pa.Table]:
    """The first step: the task's records between two rows that open and close it."""
    yield _frame(pipeline.records, name)
    for records in pipeline.read(task):
        yield _framed(records)
    yield _frame(pipeline.records, _END)


class Convert:
    """The second step, over framed tables."""

    def __init__(self, pipeline: ShardPipeline[Any]) -> None:
        self._pipeline = pipeline

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Converts what lies between the rows of the frame, and hands these on."""
        first, records, last = _unframed(table)
        if first is not None:
            yield _frame(self._pipeline.rows, first)
        if len(records):
            yield from map(_framed, self._pipeline.convert(records))
        if last:
            yield _frame(self._pipeline.rows, _END)


class Write:
    """The third step, over the framed tables of one task after the other."""

    def __init__(self, pipeline: ShardPipeline[Any]) -> None:
        self._pipeline = pipeline
        self._name = ""
        self._sink: Sink | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Writes the rows; returns the result where they close their task, otherwise nothing."""
        name, rows, last = _unframed(table)
        try:
            if name is not None:
                assert self._sink is None, f"{self._name} is closed before {name} begins"
                self._name, self._sink = name, self._pipeline.open(name)
            assert self._sink is not None, "the rows of a shard come to one worker, in order"
            if len(rows):
                self._sink.add(rows)
            if not last:
                return RESULT_SCHEMA.empty_table()
            result = self._sink.finish()
        except BaseException:
            self.close()
            raise
        self._sink = None
        return pa.table({"task": [self._name], "result": [result]}, schema=RESULT_SCHEMA)

    def close(self) -> None:
        """Discards a shard that is not whole."""
        if self._sink is not None:
            self._sink.abort()
            self._sink = None


def _frame(schema: pa.Schema, mark: str) -> pa.Table:
    """The row that opens a task, with its name, or closes it, with none."""
    return pa.Table.from_pylist([{_FRAME: mark}], schema=_framed_schema(schema))


def _framed(table: pa.Table) -> pa.Table:
    return table.append_column(_FRAME, pa.nulls(len(table), pa.string()))


def _framed_schema(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(_FRAME, pa.string()))


def _unframed(table: pa.Table) -> tuple[str | None, pa.Table, bool]:
    """The name in a row that opens a task, the rows proper, and whether a row closes the task."""
    marks, stop = table.column(_FRAME), len(table)
    name = marks[0].as_py() or None
    last = marks[stop - 1].as_py() == _END
    start = int(name is not None)
    rows = table.slice(start, stop - start - last).drop_columns([_FRAME])
    assert len(rows) == marks.null_count, "a task's frame encloses its rows"
    return name, rows, last
