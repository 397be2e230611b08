"""Continuous integration runs what CONTRIBUTING.md tells people to run, on what is supported."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_a_change_is_linted_tested_and_built_and_slow_tests_run_at_night():
    change = {name: commands(job) for name, job in jobs("ci.yml").items()}
    assert change["lint"] == ["make lint"]
    assert change["test"] == ["make test"]
    assert change["wheel"] == ["python -m pip wheel --no-deps --wheel-dir dist ."]
    assert change["docs"] == ["make docs"]
    assert commands(jobs("nightly.yml")["slow"]) == ["make test-slow"]


def test_tests_run_on_each_python_from_the_oldest_that_is_supported():
    pythons = jobs("ci.yml")["test"]["strategy"]["matrix"]["python"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert oldest == f">={pythons[0]}"
    minors = [int(python.split(".")[1]) for python in pythons]
    assert minors == list(range(minors[0], minors[0] + len(minors)))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_ends_by_itself(workflow):
    loaded = yaml.safe_load(workflow.read_text())
    assert loaded["permissions"] == {"contents": "read"}
    for job in loaded["jobs"].values():
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_make_target_of_a_workflow_is_there(workflow):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        for command in commands(job):
            assert not command.startswith("make ") or command.removeprefix("make ") in targets


def test_hooks_before_a_commit_use_the_environments_own_tools():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repository["hooks"])
