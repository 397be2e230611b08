"""Fixtures that several test files share. Everything here is real and small."""

from __future__ import annotations

import logging
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import local_ray
from infra.local_ray import RaySession
from pipelines.storage.remote_path import RemotePath
from tests.support import s3
from tests.support.paths import ROOT
from tests.support.s3 import S3Server

RAY = {"address": "local", "num_cpus": 4, "object_store_mb": 128}
"""The recipe's ``where.ray`` that the shared head answers to."""


@pytest.fixture(autouse=True)
def usual_priority() -> Iterator[None]:
    """A test leaves its process's scheduling as it was.

    The AV1 encoder (SVT-AV1) gives the process that uses it real-time priority where it may, as for root. All
    processes that it starts later, Ray's among them, would inherit that and stop everything else.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    if os.sched_getscheduler(0) != policy:
        os.sched_setscheduler(0, policy, parameters)


@pytest.fixture(autouse=True)
def usual_logs() -> Iterator[None]:
    """A test leaves the project's logger as it was: its handler may write where this test's output went."""
    logger = logging.getLogger("casa")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights and a context of 256 tokens."""
    from tests.support.serve.checkpoint import write_checkpoint

    texts = ["what colour is shape 3 red green blue", "describe it live a red circle moves on"]
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", texts)


@pytest.fixture(scope="session")
def ray_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Session folder of the Ray head that all tests share; ended with all it started."""
    folder = tmp_path_factory.mktemp("ray-head")
    yield folder
    local_ray.stop(folder)


@pytest.fixture(scope="session")
def ray_head(ray_folder: Path) -> RaySession:
    """One local Ray head for the whole test session, on loopback."""
    return local_ray.start(
        ray_folder, num_cpus=RAY["num_cpus"], object_store_mb=RAY["object_store_mb"], python_path=ROOT
    )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole test session, on loopback."""
    with s3.running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_folder(
    s3_server: S3Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemotePath]:
    """An empty folder of the S3 server, the environment holding its credentials; what this machine keeps for
    stores elsewhere goes to a temporary folder."""
    with s3.credentials(), pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        yield s3_server.folder(f"{request.node.name}-{uuid.uuid4().hex[:8]}")
