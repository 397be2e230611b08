"""Fixtures that several test files share. Everything here is real and small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import local_ray
from infra.local_ray import RaySession

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """One local Ray head for the whole test session, on loopback; ended with all it started."""
    folder = tmp_path_factory.mktemp("ray-head")
    yield local_ray.start(folder, num_cpus=4, object_store_mb=256, python_path=REPOSITORY)
    local_ray.stop(folder)
