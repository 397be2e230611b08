"""A pure function over a list of work, as a Ray Data pipeline: all that data preparation knows of Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from casa_core.errors import CasaError

Work = TypeVar("Work")
Result = TypeVar("Result")


def ray_map(function: Callable[[Work], Result], work: Sequence[Work], *, workers: int) -> Iterator[Result]:
    """Applies ``function`` to each piece of work, and yields the results in the order of ``work``.

    Rows: ``{work: binary}`` in, ``{result: binary}`` out, both pickled: a piece of work names what to read
    and where to write, a result says what was done, so both are small.

    Args:
        function: At module level, free of side effects but for files that it writes atomically: Ray may call
            it again for the same work.
        work: The pieces, one Ray task each.
        workers: Tasks that run side by side.

    Raises:
        CasaError: As ``function`` raised it.
    """
    if not work:
        return
    import ray.data
    from ray.data import TaskPoolStrategy
    from ray.exceptions import RayTaskError

    options = ray.data.DataContext.get_current()
    options.enable_progress_bars = False
    options.raise_original_map_exception = True
    options.execution_options.preserve_order = True
    items = [{"work": pickle.dumps(piece)} for piece in work]

    def apply(row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(function(pickle.loads(row["work"])))}

    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        apply, compute=TaskPoolStrategy(size=min(workers, len(items))), num_cpus=1
    )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])
    except RayTaskError as error:
        raise original_error(error.cause) from error


def original_error(error: Exception) -> Exception:
    """The error as a mapped function raised it: Ray Data appends advice of its own to the first argument."""
    if not isinstance(error, CasaError):
        return error
    return type(error)(*(str(argument).partition("\nFailed to apply UDF")[0] for argument in error.args))
