"""A Ray cluster of several nodes on this machine, checked from within.

Run as a program in a network namespace of its own, where there is nothing but loopback:
``python -m tests.support.cluster.nodes NODES STORE`` prints the facts of a cluster whose head gives out no
CPU, with so many further nodes.
"""

from __future__ import annotations

import json
import sys

from pipelines.cluster import facts


def main(nodes: int, store: str) -> None:
    """Start the cluster, gather its facts and end it."""
    import ray
    from ray.cluster_utils import Cluster

    facts.TASK_S = 60.0 if nodes else 3.0
    memory = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, **memory)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    print(facts.MARK + json.dumps(facts.gather(store)), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
