"""Training workers meet on the node's own address: loopback, for a local head."""

from __future__ import annotations

import json
import sys
import time

import pytest

from infra.local_ray import RaySession
from tests.support.paths import ROOT

JOB = ROOT / "tests/support/train/listener.py"


@pytest.mark.slow
def test_training_workers_meet_and_listen_on_loopback_only(ray_head: RaySession):
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(ray_head.address)
    job = client.submit_job(entrypoint=f"{sys.executable} {JOB}")
    deadline = time.monotonic() + 120
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.2)
    log = client.get_job_logs(job)
    told = [json.loads(line.split("LISTENS ")[1]) for line in log.splitlines() if "LISTENS " in line]
    assert len(told) >= 2, log  # Ray Train may print a line twice.
    for worker in told:
        assert worker["total"] == 3.0
        assert worker["addresses"]
        assert set(worker["addresses"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
