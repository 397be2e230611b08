"""Verdicts on a cluster from its facts: what would stop a run, what would slow it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.doctor import GIB, Check

SKEW_S, WRONG_CLOCK_S = 2.0, 300.0
"""Seconds between clocks from which logs cannot be put in order, and from which an S3 server may refuse."""
NEAR_FULL = 0.05
"""Share of a disk below Ray's threshold from which it is named."""
DISK_GIB = 20.0
NCCL_SHARED_GIB = 1.0
Node = Mapping[str, Any]


def cluster_checks(facts: Mapping[str, Any], store: str) -> list[Check]:
    """One verdict per thing that was looked at.

    Args:
        facts: As :func:`pipelines.cluster.facts.gather` returns them.
        store: The store that was written, for its name.
    """
    nodes = [node for node in facts["nodes"] if "error" not in node]
    return [
        _nodes(facts["nodes"]),
        _tasks(facts),
        *_versions(nodes),
        _gpus(nodes),
        _cpus(nodes),
        _memory(nodes),
        _shared_memory(nodes),
        _disks(nodes),
        _clocks(nodes),
        _store(facts["store"], store),
        *_network(facts, nodes),
    ]


def _nodes(nodes: Sequence[Node]) -> Check:
    broken = [f"{node['name']}: {node['error']}" for node in nodes if "error" in node]
    found = f"{len(nodes)} alive: " + ", ".join(
        f"{node['name']}{' (head)' * node['is_head']} {node['cpus']:g} CPUs {node['gpus_of_ray']:g} GPUs"
        for node in nodes
    )
    if broken:
        remedy = "install the project and its packages on each node, or use one image for all"
        return Check("nodes", "problem", found, f"no task of ours runs there: {'; '.join(broken)}", remedy)
    return Check("nodes", "ok", found)


def _tasks(facts: Mapping[str, Any]) -> Check:
    if facts["task_s"] is not None:
        return Check("tasks", "ok", f"one of 1 CPU ran after {facts['task_s']:.1f} s")
    cpus = sum(node["cpus"] for node in facts["nodes"])
    found = f"one of 1 CPU did not run; the nodes have {cpus:g} CPUs in all"
    if cpus:
        return Check("tasks", "problem", found, "a run would wait for what holds the CPUs", "end other jobs")
    cost = "every stage would wait for ever: the head gives out no CPU (num-cpus: 0), and there is no worker"
    remedy = "add workers (minReplicas: 1); `kubectl get pods` shows what holds those of an autoscaler"
    return Check("tasks", "problem", found, cost, remedy)


def _versions(nodes: Sequence[Node]) -> Iterator[Check]:
    costs = {
        "python": ("Python", "pickled functions do not cross between versions"),
        "ray": ("Ray", "nodes of two versions do not work together"),
        "torch": ("torch", "workers would compute, and communicate, differently"),
        "project": ("project", "stages would run other code than was planned"),
    }
    for name, (label, cost) in costs.items():
        by_value = _by_value(nodes, lambda node, name=name: node[name])
        found = "; ".join(f"{value} on {_few(there)}" for value, there in by_value.items())
        is_one = len(by_value) <= 1
        found = next(iter(by_value), "no node answered") if is_one else found
        remedy = "use one image, or one environment, on all nodes"
        yield Check(label, "ok", found) if is_one else Check(label, "problem", found, cost, remedy)


def _gpus(nodes: Sequence[Node]) -> Check:
    names = _by_value(nodes, lambda node: f"{len(node['gpus'])} x {node['gpus'][0]}" if node["gpus"] else "")
    names.pop("", None)
    found = "; ".join(f"{value} on {_few(there)}" for value, there in names.items()) or "none"
    apart = [
        f"{node['name']} has {len(node['gpus'])}, and Ray gives out {node['gpus_of_ray']:g}"
        for node in nodes
        if len(node["gpus"]) != node["gpus_of_ray"]
    ]
    if apart:
        cost = f"work waits for GPUs that are not there, or leaves some idle: {'; '.join(apart)}"
        return Check("GPUs", "problem", found, cost, "start Ray with the GPUs that the container sees")
    if len(names) > 1:
        return Check("GPUs", "optional", found, "the slowest decides", "keep one kind of GPU per training")
    return Check("GPUs", "ok", found)


def _cpus(nodes: Sequence[Node]) -> Check:
    over = [
        f"{node['name']} gives out {node['cpus']:g} and may use {node['usable_cpus']}"
        for node in nodes
        if node["cpus"] > node["usable_cpus"]
    ]
    found = f"{sum(node['usable_cpus'] for node in nodes)} by affinity and quota"
    if not over:
        return Check("CPU cores", "ok", found)
    cost = f"workers share them, and take longer: {'; '.join(over)}"
    return Check("CPU cores", "optional", found, cost, "raise the container's CPUs, or lower num-cpus")


def _memory(nodes: Sequence[Node]) -> Check:
    over = [
        f"{node['name']} gives out {node['memory_of_ray'] / GIB:.1f} GiB beside its object store's "
        f"{node['object_store'] / GIB:.1f}, and may use {node['memory_limit'] / GIB:.1f}"
        for node in nodes
        if node["memory_of_ray"] + node["object_store"] > node["memory_limit"]
    ]
    if over:
        cost = f"the container is ended when it uses what Ray gives out: {'; '.join(over)}"
        remedy = "raise the container's memory, or lower Ray's --memory and --object-store-memory"
        return Check("memory", "optional", f"more than the quota on {len(over)} nodes", cost, remedy)
    return Check("memory", "ok", "within every node's quota")


def _shared_memory(nodes: Sequence[Node]) -> Check:
    known = [node for node in nodes if node["shared_memory"] is not None]
    small = [node for node in known if node["shared_memory"] < node["object_store"]]
    too_small = [
        node for node in known if len(node["gpus"]) > 1 and node["shared_memory"] < NCCL_SHARED_GIB * GIB
    ]
    found = ", ".join(f"{node['name']} {node['shared_memory'] / GIB:.2f} GiB" for node in too_small or small)
    remedy = "give /dev/shm the object store's size and more (an emptyDir of medium Memory, --shm-size)"
    if too_small:
        return Check(
            "shared memory", "problem", found, "NCCL's transport between a node's GPUs fails", remedy
        )
    if small:
        cost = "Ray keeps its object store in a file instead, which is slower"
        return Check("shared memory", "optional", found, cost, remedy)
    return Check("shared memory", "ok", "holds Ray's object store on every node")


def _disks(nodes: Sequence[Node]) -> Check:
    def described(node: Node) -> str:
        used, limit = node["disk_used_share"], node["disk_full_share"]
        return f"{node['name']}:{node['temporary']} is {used:.0%} full, and Ray stops at {limit:.0%}"

    full = [node for node in nodes if node["disk_used_share"] > node["disk_full_share"]]
    near = [node for node in nodes if node["disk_used_share"] > node["disk_full_share"] - NEAR_FULL]
    small = [node for node in nodes if node["disk_free"] < DISK_GIB * GIB]
    remedy = "free some, mount a disk at Ray's --temp-dir, or raise RAY_local_fs_capacity_threshold"
    if full:
        cost = "objects that do not fit memory are not spilled, and tasks that make them fail"
        return Check("disk of Ray", "problem", "; ".join(map(described, full)), cost, remedy)
    if near:
        cost = "objects are not spilled once it is full"
        return Check("disk of Ray", "optional", "; ".join(map(described, near)), cost, remedy)
    least = min((node["disk_free"] / GIB for node in nodes), default=0.0)
    found = f"{least:.0f} GiB free where there is least"
    if small:
        return Check("disk of Ray", "optional", found, "logs and spilled objects lie there", remedy)
    return Check("disk of Ray", "ok", found)


def _clocks(nodes: Sequence[Node]) -> Check:
    skews = {node["name"]: node["skew_s"] for node in nodes if node.get("skew_s") is not None}
    apart = max(skews.values(), default=0.0) - min(skews.values(), default=0.0)
    found = f"{apart:.2f} s apart at most"
    if apart < SKEW_S:
        return Check("clocks", "ok", found)
    worst = max(skews, key=lambda name: abs(skews[name]))
    cost = f"logs cannot be put in order, and S3 refuses wrong hours: {worst} is {skews[worst]:+.1f} s"
    level = "problem" if apart > WRONG_CLOCK_S else "optional"
    return Check("clocks", level, found, cost, "run chrony or another NTP client on the nodes")


def _store(found: Mapping[str, Mapping[str, Any]], store: str) -> Check:
    errors = [f"{name}: {own['error']}" for name, own in found.items() if "error" in own]
    unseen = [
        f"{name} does not see what {_few(own['unseen'])} wrote"
        for name, own in found.items()
        if own.get("unseen")
    ]
    if errors:
        remedy = "give every node the store's credentials, or permission to write"
        return Check("store", "problem", store, "; ".join(errors), remedy)
    if unseen:
        remedy = "use s3://bucket/prefix, or a folder that all nodes mount at the same path"
        return Check("store", "problem", f"{store} is not one folder", "; ".join(unseen), remedy)
    return Check("store", "ok", f"{store} is written and read by {len(found)} nodes")


def _network(facts: Mapping[str, Any], nodes: Sequence[Node]) -> Iterator[Check]:
    with_gpus = sum(bool(node["gpus_of_ray"]) for node in nodes)
    for backend, count in (("gloo", len(nodes)), ("nccl", with_gpus)):
        error = facts[backend]
        if error is None:
            if backend == "gloo":
                yield Check(backend, "ok", "one node has nobody to reach")
        elif error:
            name = f"{backend.upper()}_SOCKET_IFNAME"
            remedy = f"open the ports between nodes, and name their interface: {name}=eth0"
            cost = f"training's workers do not reach each other: {error}"
            yield Check(backend, "problem", f"no sum over {count} nodes", cost, remedy)
        else:
            yield Check(backend, "ok", f"a sum over {count} nodes is right")


def _by_value(nodes: Sequence[Node], value: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(value(node), []).append(node["name"])
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
