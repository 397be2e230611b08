"""A cluster's verdicts, from facts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from infra.doctor import GIB
from pipelines.cluster.checks import cluster_checks


def node(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "is_head": name == "head",
        "cpus": 8.0,
        "gpus_of_ray": 0.0,
        "object_store": 4 * GIB,
        "skew_s": 0.01,
        "python": "3.11.7",
        "ray": "2.60.0",
        "torch": "2.13.0",
        "project": "abc",
        "usable_cpus": 8,
        "memory_limit": 64 * GIB,
        "memory_of_ray": 40 * GIB,
        "shared_memory": 8 * GIB,
        "temporary": "/tmp/ray",
        "disk_free": 100 * GIB,
        "disk_used_share": 0.3,
        "disk_full_share": 0.95,
        "gpus": [],
        "driver": None,
        "cuda": None,
    } | facts


def facts(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    store = {one["name"]: {"unseen": []} for one in nodes}
    return {"nodes": list(nodes), "task_s": 0.5, "store": store, "gloo": "", "nccl": None} | more


GOOD = facts(node("head", cpus=0.0), node("a"), node("b"))


def verdicts(found: dict[str, Any]) -> dict[str, Any]:
    return {check.name: check for check in cluster_checks(found, "s3://bucket/runs")}


def test_a_cluster_without_faults_has_no_other_verdict():
    assert {check.level for check in verdicts(GOOD).values()} == {"ok"}
    assert {"nodes", "tasks", "Python", "Ray", "torch", "project", "GPUs", "store", "gloo"} <= verdicts(
        GOOD
    ).keys()


@pytest.mark.parametrize(
    ("changed", "name", "level", "names"),
    [
        ({"python": "3.12.1"}, "Python", "problem", "3.12.1 on b"),
        ({"ray": "2.61.0"}, "Ray", "problem", "2.61.0 on b"),
        ({"torch": "2.14.0"}, "torch", "problem", "2.14.0 on b"),
        ({"project": "old"}, "project", "problem", "old on b"),
        ({"gpus_of_ray": 8.0, "gpus": ["H100"] * 7}, "GPUs", "problem", "b has 7, and Ray gives out 8"),
        ({"usable_cpus": 2}, "CPU cores", "optional", "b gives out 8 and may use 2"),
        ({"memory_limit": 8 * GIB}, "memory", "optional", "may use 8.0"),
        ({"shared_memory": 64 * 2**20}, "shared memory", "optional", "b 0.06 GiB"),
        (
            {"shared_memory": 64 * 2**20, "gpus": ["H100"] * 2, "gpus_of_ray": 2.0},
            *("shared memory", "problem", "b 0.06 GiB"),
        ),
        ({"disk_used_share": 0.97}, "disk of Ray", "problem", "b:/tmp/ray is 97% full"),
        ({"disk_used_share": 0.92}, "disk of Ray", "optional", "b:/tmp/ray is 92% full"),
        ({"disk_used_share": 0.02, "disk_full_share": 0.01}, "disk of Ray", "problem", "stops at 1%"),
        ({"disk_free": GIB}, "disk of Ray", "optional", "1 GiB free"),
        ({"skew_s": 7.0}, "clocks", "optional", "b is +7.0 s"),
        ({"skew_s": -4000.0}, "clocks", "problem", "b is -4000.0 s"),
        ({"error": "ModuleNotFoundError: No module named 'infra'"}, "nodes", "problem", "No module named"),
    ],
)
def test_a_fault_of_one_node_is_named_with_that_node_and_a_remedy(
    changed: dict[str, Any], name: str, level: str, names: str
):
    found = copy.deepcopy(GOOD)
    found["nodes"][2] |= changed
    check = verdicts(found)[name]
    assert check.level == level
    assert names in check.found + check.cost
    assert check.remedy
    others = [one.name for one in verdicts(found).values() if one.level == "problem" and one.name != name]
    assert others == []


@pytest.mark.parametrize(
    ("changed", "name", "names"),
    [
        ({"task_s": None, "nodes": [node("head", cpus=0.0)]}, "tasks", "num-cpus: 0"),
        ({"task_s": None}, "tasks", "end other jobs"),
        ({"gloo": "Connection refused"}, "gloo", "Connection refused"),
        ({"nccl": "unhandled system error"}, "nccl", "NCCL_SOCKET_IFNAME"),
        ({"store": {"a": {"unseen": ["b"]}, "b": {"unseen": []}}}, "store", "a does not see what b wrote"),
        ({"store": {"a": {"error": "Access Denied"}}}, "store", "a: Access Denied"),
    ],
)
def test_what_only_the_cluster_as_a_whole_shows_is_named(changed: dict[str, Any], name: str, names: str):
    check = verdicts(GOOD | changed)[name]
    assert check.level == "problem"
    assert names in check.found + check.cost + check.remedy
