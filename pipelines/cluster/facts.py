"""What each node of a Ray cluster is, has and sees: gathered by tasks on every node.

``python -m pipelines.cluster.facts STORE`` prints it as one line of JSON, as a job of the cluster's own.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.doctor import full_share
from infra.environment import local_gpus, source_digest
from infra.quota import memory_limit, usable_cpus
from pipelines.cluster.collective import all_reduce

MARK = "cluster facts: "
NODE_S = 60.0
"""Seconds that a node has for a task's answer; its first import of torch is part of it."""
TASK_S = 45.0
"""Seconds within which a task of one CPU must run, an autoscaler's nodes among others."""
ANSWERS = 3
ROOT = Path(__file__).resolve().parents[2]


def gather(store: str) -> dict[str, Any]:
    """Facts of the cluster that this process has joined.

    Args:
        store: A run's store, a path or URI.

    Returns:
        ``nodes``: of each what Ray and :func:`node_facts` hold, or its ``error``. ``task_s``: seconds until a
        task of one CPU ran; ``None`` where it did not. ``store``: of each node the nodes whose file it does
        not see, or an error. ``gloo``, ``nccl``: error of a sum over all nodes, or those with GPUs; empty
        where it is right, ``None`` where there are fewer than two to connect.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    ids = [node["NodeID"] for node in alive]
    found, skews = _on_each(ids, node_facts), _skews(ids)
    nodes = [
        {
            "id": node["NodeID"],
            "name": node["NodeManagerAddress"],
            "is_head": any("internal_head" in name for name in node["Resources"]),
            "cpus": node["Resources"].get("CPU", 0),
            "gpus_of_ray": node["Resources"].get("GPU", 0),
            "object_store": node["Resources"].get("object_store_memory", 0),
            "memory_of_ray": node["Resources"].get("memory", 0),
            "skew_s": skews[node["NodeID"]],
            **found[node["NodeID"]],
        }
        for node in alive
    ]
    _name_apart(nodes)
    names = {node["id"]: node["name"] for node in nodes}
    able = [node["id"] for node in nodes if "error" not in node]
    with_gpus = [node["id"] for node in nodes if node["gpus_of_ray"] and node["id"] in able]
    return {
        "nodes": nodes,
        "task_s": _seconds_to_a_task(),
        "store": _store_facts(able, names, store),
        "gloo": all_reduce(able, "gloo") if len(able) > 1 else None,
        "nccl": all_reduce(with_gpus, "nccl") if with_gpus else None,
    }


def _name_apart(nodes: Sequence[dict[str, Any]]) -> None:
    """Nodes of one address, as on one machine, get the beginnings of their ids."""
    names = [node["name"] for node in nodes]
    for node in nodes:
        if names.count(node["name"]) > 1:
            node["name"] += f" ({node['id'][:6]})"


def node_facts() -> dict[str, Any]:
    """Facts of the node that this task runs on; sizes in bytes."""
    import ray
    import torch

    temporary = _ray_folder()
    disk, shared = shutil.disk_usage(temporary), Path("/dev/shm")
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "torch": torch.__version__,
        "project": source_digest(ROOT)[:12],
        "usable_cpus": usable_cpus(),
        "memory_limit": memory_limit(),
        "shared_memory": shutil.disk_usage(shared).total if shared.is_dir() else None,
        "temporary": str(temporary),
        "disk_free": disk.free,
        "disk_used_share": disk.used / (disk.used + disk.free),
        "disk_full_share": full_share(),
        **local_gpus(),
    }


def _ray_folder() -> Path:
    """Ray's temporary folder on this node, where logs lie and objects are spilled to."""
    from ray._private import worker

    node = worker._global_node  # there is no public name for it in Ray 2.60
    return Path(tempfile.gettempdir() if node is None else node.get_session_dir_path())


def _on_each(
    ids: Sequence[str], function: Any, arguments: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """What a function returns on each node; ``{"error": …}`` where it raised, or did not answer."""
    import ray
    from ray.exceptions import RayError

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {one: _there(task, one).remote(*(arguments or {}).get(one, ())) for one in ids}
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + NODE_S
    for one, reference in asked.items():
        try:
            found[one] = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except RayError as error:
            found[one] = {"error": str(error).strip().splitlines()[-1]}
    return found


def _clock() -> float:
    """Seconds since the epoch: Ray takes no function that is written in C."""
    return time.time()


def _there(task: Any, node: str) -> Any:
    """A task that runs on one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def _skews(ids: Sequence[str]) -> dict[str, float | None]:
    """Seconds by which each node's clock is ahead of the middle between question and answer here.

    The quickest of several answers counts. ``None`` where there is none.
    """
    import ray
    from ray.exceptions import RayError

    clock = ray.remote(num_cpus=0)(_clock)
    found: dict[str, float | None] = {}
    for one in ids:
        answers: list[tuple[float, float]] = []
        for _ in range(ANSWERS):
            before = time.time()
            try:
                read: float = ray.get(_there(clock, one).remote(), timeout=NODE_S)
            except RayError:  # the node went, and another check names it
                break
            after = time.time()
            answers.append((after - before, read - (before + after) / 2))
        found[one] = min(answers)[1] if answers else None
    return found


def _seconds_to_a_task() -> float | None:
    """Seconds until a task of one CPU has run; ``None`` where it has not within ``TASK_S``."""
    import ray
    from ray.exceptions import GetTimeoutError

    began = time.monotonic()
    asked = ray.remote(num_cpus=1)(_clock).remote()
    try:
        ray.get(asked, timeout=TASK_S)
    except GetTimeoutError:
        ray.cancel(asked, force=True)
        return None
    return time.monotonic() - began


def _store_facts(ids: Sequence[str], names: Mapping[str, str], store: str) -> dict[str, dict[str, Any]]:
    """Node's name → the names of nodes whose files it does not see (``unseen``), or an ``error``."""
    probe = f"doctor-{uuid.uuid4().hex[:12]}"
    written = _on_each(ids, write_probe, {one: (store, probe, one) for one in ids})
    there = [one for one in ids if "error" not in written[one]]
    seen = _on_each(there, read_probes, dict.fromkeys(there, (store, probe)))
    _on_each(there, remove_probes, dict.fromkeys(there, (store, probe)))
    found: dict[str, dict[str, Any]] = {}
    for one in ids:
        answer = seen.get(one, written[one])
        unseen = [names[other] for other in there if other not in answer.get("seen", ())]
        found[names[one]] = {"error": answer["error"]} if "error" in answer else {"unseen": unseen}
    return found


def _probes(store: str, probe: str) -> Any:
    from pipelines.storage.uri import open_folder

    return open_folder(store) / "session" / probe


def write_probe(store: str, probe: str, own: str) -> dict[str, Any]:
    """Write a node's file into the store."""
    folder = _probes(store, probe)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / own).write_bytes(own.encode())
    return {}


def read_probes(store: str, probe: str) -> dict[str, Any]:
    """The nodes whose files are seen, and hold what was written."""
    folder = _probes(store, probe)
    found = list(folder.iterdir()) if folder.is_dir() else []
    return {"seen": [path.name for path in found if path.read_bytes().decode() == path.name]}


def remove_probes(store: str, probe: str) -> dict[str, Any]:
    """Remove the files again; of a shared folder, several nodes do."""
    from pipelines.storage.transfer import remove_tree

    with contextlib.suppress(FileNotFoundError):
        remove_tree(_probes(store, probe))
    return {}


def main() -> int:
    """Print the facts of the cluster that this is a job of."""
    import ray

    ray.init(log_to_driver=False)
    print(MARK + json.dumps(gather(sys.argv[1])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
