"""A Ray cluster of several nodes on this machine, on loopback, in which nodes come and go while a run trains.

Run as a program in a network namespace of its own, where there is nothing but loopback:
``python -m tests.support.train.cluster script.json``. The script is a job, the number of nodes at the
start, and what happens after how many steps on how many workers: ``[["add", 10, 2], ["kill", 12, 3]]``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from pipelines.train.metrics import FILE, read_lines

MODULE = "tests.support.train.cluster"


def main(path: str) -> int:
    """Keep the cluster, and add and remove nodes as the script lists, while another process trains in it.

    A raylet ends with the thread that started it, so this thread has nothing else to do.
    """
    from ray.cluster_utils import Cluster

    script = json.loads(Path(path).read_text())
    memory = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(script["nodes"])]
    cluster.wait_for_nodes()
    training = subprocess.Popen([sys.executable, "-m", MODULE, path, str(cluster.address)])
    try:
        output = Path(script["job"]["output"])
        for what, steps, workers in script["events"]:
            while training.poll() is None and steps_on(output, workers) < steps:
                time.sleep(0.05)
            if training.poll() is not None:
                break
            if what == "kill":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            else:
                nodes.append(cluster.add_node(num_cpus=1, **memory))
            print(f"{what} after {steps} steps on {workers} workers", flush=True)
        return training.wait()
    finally:
        training.kill()
        cluster.shutdown()


def train(path: str, address: str) -> None:
    """Train the script's job in the cluster."""
    import ray

    from pipelines.dag.settings import read_settings
    from pipelines.train.run import _fit
    from pipelines.train.settings import TrainJob

    script = json.loads(Path(path).read_text())
    ray.init(address=address, log_to_driver=False)
    _fit(read_settings(TrainJob, script["job"]), name="cluster")


def steps_on(output: Path, workers: int) -> int:
    """Steps of a run that so many workers have taken."""
    return sum(line["workers"] == workers for line in read_lines(output / FILE))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        train(*sys.argv[1:])
    else:
        sys.exit(main(sys.argv[1]))
