"""A cluster's facts, from wherever this is asked: by a job of its own, or from within."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

from casa_core.errors import ClusterError
from pipelines.cluster.facts import MARK
from pipelines.storage.host import session_folder

if TYPE_CHECKING:
    from infra.ray_clients import JobsClient
    from pipelines.storage.uri import Folder

JOB_S = 300.0
"""Seconds that the job may take; each of its steps has a bound of its own."""
POLL_S = 0.5
LOCAL, AUTO = "local", "auto"


def ask_cluster(address: str, store: Folder) -> dict[str, Any]:
    """Facts of a cluster, as :func:`pipelines.cluster.facts.gather` returns them.

    Args:
        address: ``local``: the head of a store on this machine; a dashboard's URL; ``auto`` or ``host:port``:
            a cluster that this machine is a node of.

    Raises:
        ClusterError: If it does not answer, or the job on it fails.
    """
    if address == LOCAL:
        from infra import local_ray

        session = local_ray.find(session_folder(store))
        if session is None:
            raise ClusterError(
                f"No local Ray head runs for {store}.",
                "`casa run` starts it, and it stays until `casa stop`.",
                "Check the machine with `casa doctor`, or name a cluster: `--address http://head:8265`.",
            )
        return _by_job(session.address, sys.executable, store)
    if "://" in address:
        return _by_job(address, "python", store)
    return _from_within(address, store)


def _by_job(address: str, python: str, store: Folder) -> dict[str, Any]:
    from infra.ray_clients import JobsClient

    client = JobsClient(address)
    command = f"exec {shlex.quote(python)} -m pipelines.cluster.facts {shlex.quote(str(store))}"
    try:
        job = client.submit_job(entrypoint=command, submission_id=f"doctor-{uuid.uuid4().hex[:12]}")
        return _answer(client, job, address)
    except RuntimeError as error:  # Ray's client has no other kind
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(
            f"The Ray cluster at {address} refused the job that checks it.",
            str(error).strip()[-2000:],
            "Its dashboard shows whether the head's agent takes jobs.",
        ) from None


def _answer(client: JobsClient, job: str, address: str) -> dict[str, Any]:
    deadline = time.monotonic() + JOB_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise ClusterError(
                f"The job {job} at {address} was not done within {JOB_S:.0f} s.",
                "It waits for the head, or for a node that does not answer.",
                "Ray's dashboard shows where it is; it was asked to end.",
            )
        time.sleep(POLL_S)
    return _parsed(client.get_job_logs(job), f"The job {job} at {address} ended without an answer: {status}.")


def _from_within(address: str, store: Folder) -> dict[str, Any]:
    """In a process of its own: Ray ends a process that has found a cluster which is no longer there."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cluster.facts", str(store)],
            env={**os.environ, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"The Ray cluster at {address!r} was not looked at within {JOB_S:.0f} s.",
            "Its control plane does not answer, or a node does not.",
            "Look at its dashboard; `ray status` shows whether this machine is part of it.",
        ) from None
    return _parsed(
        done.stdout + done.stderr, f"No Ray cluster was found at {address!r}, or it did not answer."
    )


def _parsed(log: str, otherwise: str) -> dict[str, Any]:
    """The facts in a log; ``otherwise`` is the error where there are none."""
    for line in reversed(log.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise ClusterError(
        otherwise,
        f"The end of its output: {_last_words(log)[-1000:].rstrip('.')}.",
        "Name its dashboard, `--address http://head:8265`; this project is needed on all its nodes.",
    )


def _last_words(log: str) -> str:
    """The end of a log, of a traceback its error alone."""
    lines = log.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith(("Traceback (", "  "))]
    return "\n".join(lines[frames[-1] + 1 :] or lines[-1:] if frames else lines)
