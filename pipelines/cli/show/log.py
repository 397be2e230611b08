"""What a job prints, on the terminal."""

from __future__ import annotations

import time

from casa_core.printable import printable
from pipelines.dag.jobs import Cluster
from pipelines.dag.progress import parse_progress, printed_lines
from pipelines.dag.records import Records
from pipelines.storage.growing import Follower

FOLLOW_S = 0.3


def print_lines(records: Records, cluster: Cluster, job_id: str, *, follow: bool) -> None:
    """Print what a job has printed, and what it prints until it ends if it is followed."""
    tail = Follower(records.log_path(job_id))
    while True:
        active = follow and cluster.is_reachable() and cluster.state(job_id) == "active"
        for line in printed_lines(tail, now=not active):
            if parse_progress(line) is None:
                print(printable(line, colours=True))
        if not active:
            return
        time.sleep(FOLLOW_S)
