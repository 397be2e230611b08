"""The Ray cluster of an evaluation: one that runs, or a small one of this process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from casa_core.errors import ClusterError
from infra.local_ray import LOOPBACK_ENVIRONMENT

REACHED_WITHIN_S = 10.0
"""A cluster's head takes a connection sooner, or is not there."""


@contextmanager
def joined_cluster(address: str | None, workers: int) -> Iterator[None]:
    """Join a Ray cluster, or have one of this process on loopback."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Ray keeps RAY_AUTH_MODE as it is when ray is imported: workers that take part under another mode
        # than this process end before they start.
        os.environ.update(LOOPBACK_ENVIRONMENT)
        quiet |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,
            "_node_ip_address": "127.0.0.1",
        }
    import ray

    try:
        _check_reachable(address or "")
        ray.init(address=address or "local", **quiet)
    except OSError as error:  # Ray's ConnectionError is one
        raise ClusterError(
            f"There is no Ray cluster at {address}.",
            str(error).partition("\n")[0],
            "Start one (`ray start --head`), or leave --address out to have one on this machine.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ask once whether anything listens at ``host:port``: Ray itself tries for minutes.

    Raises:
        OSError: Where nothing does.
    """
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN_S).close()
