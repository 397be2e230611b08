"""What is recorded of an environment, and what sets two apart."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray

from infra.environment import (
    ABSENT,
    Difference,
    differences,
    environment,
    installed_packages,
    local_gpus,
)
from tests.support.paths import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one module of the project's."""
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "one.py").write_text("x = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_every_installed_package_is_recorded_as_pip_finds_it():
    listed = {
        one.metadata["Name"].replace("_", "-").replace(".", "-").lower(): one.version
        for one in importlib.metadata.distributions()
    }
    found = installed_packages()
    assert {
        name: found.get(name) for name in ("torch", "ray", "pyarrow", "deepspeed")
    }.items() <= listed.items()
    assert len(found.keys() & listed.keys()) > 0.9 * len(listed)


def test_a_change_that_is_in_no_commit_is_recorded_by_its_digest(checkout: Path):
    clean = environment(checkout)
    assert (len(clean["git_commit"]), clean["git_diff"]) == (40, None)
    (checkout / "infra" / "one.py").write_text("x = 2\n")
    changed = environment(checkout)
    assert changed["git_commit"] == clean["git_commit"] + "+"
    assert len(changed["git_diff"]) == 64


def test_an_environment_is_json_and_names_the_image_and_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CASA_IMAGE", "registry.example.org/casa@sha256:12ab")
    found = json.loads(json.dumps(environment(ROOT)))
    assert found["image"] == "registry.example.org/casa@sha256:12ab"
    assert [one["count"] for one in found["nodes"]] == [1]
    assert differences(found, environment(ROOT)) == []


def test_of_a_cluster_every_nodes_size_is_recorded_and_the_gpus_of_one():
    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=3, num_gpus=1, configure_logging=False, **small)
    try:
        found = environment(ROOT)
    finally:
        ray.shutdown()
    assert found["nodes"] == [{"count": 1, "cpus": 3, "gpus": 1}]
    assert isinstance(found["gpus"], list)


def test_gpus_and_their_driver_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'NVIDIA H200, 570.86.15\\nNVIDIA H200, 570.86.15\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = local_gpus()
    assert (found["gpus"], found["driver"]) == (["NVIDIA H200"] * 2, "570.86.15")
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert local_gpus()["gpus"] == []


RECORDED: dict[str, Any] = {
    "host": "one",
    "platform": "Linux-6.1",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "typer": "0.9", "rich": "13"},
    "git_commit": "a" * 40,
    "git_diff": None,
    "source_digest": "1" * 64,
    "image": None,
    "gpus": ["H100", "H100"],
    "driver": "550",
    "cuda": "12.8",
    "nodes": [{"count": 2, "cpus": 8, "gpus": 1}],
}


@pytest.mark.parametrize(
    ("changed", "name", "before", "after", "is_decisive"),
    [
        ({"source_digest": "2" * 64, "git_commit": "b" * 40}, "code", "a" * 40, "b" * 40, True),
        (
            {"packages": {**RECORDED["packages"], "torch": "2.14.0"}},
            "package torch",
            "2.13.0",
            "2.14.0",
            True,
        ),
        ({"packages": {**RECORDED["packages"], "typer": "0.10"}}, "package typer", "0.9", "0.10", False),
        ({"packages": {**RECORDED["packages"], "new": "1"}}, "package new", ABSENT, "1", False),
        ({"python": "3.12.0"}, "python", "3.11.7", "3.12.0", True),
        ({"python": "3.11.9"}, "python", "3.11.7", "3.11.9", False),
        ({"image": "casa:1"}, "image", ABSENT, "casa:1", True),
        ({"gpus": []}, "gpus", "2 x H100", ABSENT, True),
        ({"driver": "560"}, "driver", "550", "560", False),
        (
            {"nodes": [{"count": 1, "cpus": 2, "gpus": 0}]},
            *("nodes", "2 x (8 CPUs, 1 GPUs)", "1 x (2 CPUs, 0 GPUs)", False),
        ),
    ],
)
def test_each_difference_is_named_with_both_values_and_a_remedy(
    changed: dict[str, Any], name: str, before: str, after: str, is_decisive: bool
):
    [found] = differences(RECORDED, RECORDED | changed)
    assert (found.name, found.recorded, found.present) == (name, before, after)
    assert found.is_decisive == is_decisive
    assert found.remedy


def test_another_host_or_commit_with_the_same_files_is_no_difference():
    assert differences(RECORDED, RECORDED | {"host": "other", "git_commit": "c" * 40}) == []


def test_changes_that_no_commit_holds_are_said_to_be_missing():
    [found] = differences(
        RECORDED | {"git_commit": "a" * 40 + "+", "git_diff": "d" * 64},
        RECORDED | {"source_digest": "2" * 64},
    )
    assert "changes that no commit holds" in found.remedy


def test_a_record_of_an_earlier_version_is_compared_by_what_it_holds():
    earlier = {"python": "3.11.7", "packages": {"torch": "2.12.0"}, "git_commit": "a" * 40}
    [found] = differences(earlier, RECORDED)
    assert found == Difference("package torch", "2.12.0", "2.13.0", "`pip install torch==2.12.0`", True)
