"""The real Ray Serve, for the tests that need it: one address and one deployment for each module."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from infra.local_ray import RaySession
from pipelines.deploy import endpoint, ray_serve
from tests.support.serve.cluster import APPLICATION


@pytest.fixture(scope="module")
def cluster(ray_head: RaySession) -> ServeSubmissionClient:
    return ServeSubmissionClient(ray_head.address)


@pytest.fixture(scope="module")
def address() -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"host": "127.0.0.1", "port": free.getsockname()[1]}


@pytest.fixture(scope="module")
def url(cluster: ServeSubmissionClient, address: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    """The URL of the endpoint that the module's `arguments` describe."""
    ray_serve.start(cluster, address, arguments, {}, APPLICATION)
    yield endpoint.endpoint_url(**address)
    cluster.delete_applications()  # the head is shared with other tests
