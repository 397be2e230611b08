"""A pure function over a list of work, as Ray tasks: the only module of data preparation that uses Ray.

Plain tasks and not a Ray Data pipeline: a piece of work names what to read and where to write, and nothing
flows between pieces. So there is nothing to stream, and no executor's loop, actors and imports to pay for,
which took a tenth of the time that decoding pictures takes (``python -m benchmarks.clean``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from casa_core.errors import CasaError

Work = TypeVar("Work")
Result = TypeVar("Result")

AHEAD = 64
"""Pieces for each worker that may be done before an earlier one is: how many results can wait at most."""


def ray_map(function: Callable[[Work], Result], work: Sequence[Work], *, workers: int) -> Iterator[Result]:
    """Applies ``function`` to each piece of work, and yields the results in the order of ``work``.

    Work and results are pickled, and small: a piece of work names what to read and where to write, a result
    says what was done. Where a worker's process or node dies, Ray gives its piece to another.

    Args:
        function: At module level, free of side effects but for files that it writes atomically: Ray may call
            it again for the same work.
        work: The pieces, one Ray task each.
        workers: Tasks that run side by side.

    Raises:
        CasaError: As ``function`` raised it; so with any other error.
    """
    if not work:
        return
    import ray
    from ray.exceptions import RayTaskError

    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(function)
    running: dict[Any, int] = {}
    done: dict[int, Any] = {}
    begun = given = 0
    try:
        while given < len(work):
            while begun < len(work) and len(running) < workers and begun - given < AHEAD * workers:
                running[task.remote(work[begun])] = begun
                begun += 1
            (ready, *_), _ = ray.wait([*running], num_returns=1)
            done[running.pop(ready)] = ready
            while given in done:
                yield ray.get(done.pop(given))
                given += 1
    except RayTaskError as error:
        raise original_error(error.cause) from error
    finally:
        if ray.is_initialized():  # the caller may have ended Ray
            for reference in running:
                ray.cancel(reference)


def original_error(error: Exception) -> Exception:
    """The error as a mapped function raised it: Ray Data appends advice of its own to the first argument."""
    if not isinstance(error, CasaError):
        return error
    return type(error)(*(str(argument).partition("\nFailed to apply UDF")[0] for argument in error.args))
