"""A small Ray of a test module's own, in its process, where the shared head and its jobs are not needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def own_ray(cpus: int) -> Iterator[None]:
    """Start it, and end it with all that it runs."""
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
