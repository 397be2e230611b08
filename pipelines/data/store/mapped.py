"""A pure function over a list of work, on a run of shard pipelines: small pieces in, small results out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.data.store.shard_pipeline import Run, ShardPipeline

Work = TypeVar("Work")
Result = TypeVar("Result")


def run_mapped(
    run: Run, function: Callable[[Work], Result], work: Sequence[Work], activity: str, remedy: str
) -> list[Result]:
    """The results of ``function`` for each piece of work, in order.

    Args:
        function: At module level, without side effects.
        activity, remedy: As of :class:`ShardPipeline`.

    Raises:
        CasaError: As ``function`` raised it.
    """
    tasks = {str(number): piece for number, piece in enumerate(work)}
    found = dict(run(_Mapped(function, activity, remedy), tasks, list(tasks))) if tasks else {}
    return [pickle.loads(found[name]) for name in tasks]


class _Mapped(ShardPipeline[Any]):
    """Each task is one record, and its result one row; both pickled."""

    records = rows = pa.schema([("pickled", pa.large_binary())])

    def __init__(self, function: Callable[[Any], Any], activity: str, remedy: str) -> None:
        self._function, self.activity, self.remedy = function, activity, remedy

    def read(self, task: Any) -> Iterator[pa.Table]:
        yield self._table(task)

    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        for pickled in records.column("pickled"):
            yield self._table(self._function(pickle.loads(pickled.as_buffer())))

    def open(self, name: str) -> _Kept:
        return _Kept()

    def _table(self, value: Any) -> pa.Table:
        return pa.table({"pickled": [pickle.dumps(value)]}, schema=self.rows)


class _Kept:
    """Hands a task's row to the driver."""

    def add(self, rows: pa.Table) -> None:
        (self._result,) = rows.column("pickled").to_pylist()

    def finish(self) -> bytes:
        return self._result

    def abort(self) -> None:
        """Nothing was written."""
