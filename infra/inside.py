"""Whether this process is a run's runner on the cluster itself, and how it reaches the cluster from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Inside:
    """A runner that is a job of its cluster.

    Attributes:
        job_id: The job, as the store's records call it.
        dashboard: Where the cluster's dashboard answers from within, whatever the recipe's address is: that
            may be a tunnel's on somebody's laptop.
    """

    job_id: str
    dashboard: str


_INSIDE: ContextVar[Inside | None] = ContextVar("inside", default=None)


@contextmanager
def inside(runner: Inside) -> Iterator[None]:
    """Within the block, this process is the runner."""
    token = _INSIDE.set(runner)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def runner_job() -> str:
    """Id of the runner's job; empty where the runner is no job."""
    own = _INSIDE.get()
    return own.job_id if own is not None else ""


def dashboard_of(ray: Mapping[str, Any]) -> str:
    """URL of the dashboard of a recipe's cluster that is not local, as this process reaches it.

    Args:
        ray: The recipe's ``where.ray``.
    """
    own = _INSIDE.get()
    return own.dashboard if own is not None else str(ray["address"])
