"""This project's packages have common names: another project's in their place is named, and not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with this project's packages, as installed."""
    for name in ("casa", "casa_core", "pipelines", "serve", "infra"):
        shutil.copytree(ROOT / name, tmp_path / "site" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def casa(site: Path, *before: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (*before, site)))
    program = "from casa.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
        capture_output=True,
        text=True,
    )


def test_the_command_runs_where_its_packages_are_its_own(site: Path):
    done = casa(site)
    assert (done.returncode, done.stdout[:5]) == (0, "casa "), done.stderr


@pytest.mark.parametrize("name", ["pipelines", "serve", "infra", "casa_core"])
def test_another_projects_package_before_ours_is_named(site: Path, tmp_path: Path, name: str):
    (tmp_path / "theirs" / name).mkdir(parents=True)
    (tmp_path / "theirs" / name / "__init__.py").touch()
    done = casa(site, tmp_path / "theirs")
    assert done.returncode == 2
    assert f"The package `{name}` is another project's: {tmp_path / 'theirs' / name}" in done.stderr
    assert "virtual environment of its own" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_another_distribution_took_along_is_missed(site: Path):
    shutil.rmtree(site / "serve")
    done = casa(site)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "`serve`" in done.stderr
