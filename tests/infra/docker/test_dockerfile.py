"""The images are built of pinned parts, from what they need, for a user without rights."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "infra" / "docker"
TEXT = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1)) for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line.strip()
]
LOCK = dict(
    line.split("==") for line in (FOLDER / "lock.txt").read_text().splitlines() if not line.startswith("#")
)


def of(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def stages() -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for one in INSTRUCTIONS:
        if one[0] == "FROM":
            found[one[1].split(" AS ")[1]] = current = []
        current.append(one)
    return found


def test_bases_have_a_full_version():
    names = {"base", "cpu", "gpu"}
    assert stages().keys() == names
    for base in of("FROM"):
        image = base.split(" AS ")[0]
        assert image in names or re.fullmatch(r"[a-z/.]+:\d+\.\d+\.\d+-[a-z-]+", image), image


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_what_runs_has_no_rights(stage: str):
    users = [rest for instruction, rest in stages()[stage] if instruction == "USER"]
    assert users == ["1000:1000"]
    runs = [index for index, one in enumerate(stages()[stage]) if one[0] in ("RUN", "COPY")]
    assert max(runs) < stages()[stage].index(("USER", "1000:1000"))


def test_packages_of_the_system_are_few_pinned_and_leave_no_lists():
    for run in of("RUN"):
        if "apt-get" not in run:
            continue
        [packages] = re.findall(r"apt-get install --yes --no-install-recommends +(.*?) *&&", run)
        assert all("=" in package for package in packages.split())
        assert "rm -rf /var/lib/apt/lists/*" in run


def test_every_dependency_is_installed_in_the_version_that_the_lock_names():
    assert all("==" not in version for version in LOCK.values())
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins.items() <= LOCK.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *extras["demo"], *extras["track"]):
        [name] = re.findall(r"^[\w-]+", requirement)
        assert name.lower().replace("_", "-") in {known.lower().replace("_", "-") for known in LOCK}
    for stage in ("cpu", "gpu"):
        [install] = [rest for instruction, rest in stages()[stage] if "pip install" in rest]
        assert install.startswith("python -m pip install --requirement infra/docker/lock.txt")


def test_nothing_secret_is_built_in_and_only_what_is_needed_is_sent():
    for value in (*of("ENV"), *of("ARG")):
        assert not re.search(r"SECRET|TOKEN|PASSWORD|_KEY", value)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert needed | {"pyproject.toml", "README.md", "LICENSE"} <= sent
    assert all((ROOT / name).exists() for name in sent)
    assert not any(fnmatch(".git", line) for line in sent)


def test_the_tags_in_the_manifests_are_those_that_the_file_says_to_build():
    [images] = [
        yaml.safe_load((ROOT / "infra" / "kubernetes" / "versions" / "kustomization.yaml").read_text())[
            "images"
        ]
    ]
    commands = (FOLDER / "Dockerfile").read_text()
    for one in images:
        if one["name"].startswith("casa"):
            target = one["newTag"].rpartition("-")[2]
            assert f"--target {target} -t {one['newName']}:{one['newTag']} " in commands
            assert f"-ray{LOCK['ray']}-" in one["newTag"]
