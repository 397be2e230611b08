"""The code that jobs of another cluster get: all of it, nothing else, and the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from infra.code_package import KEPT_S, code_archive
from tests.support.paths import ROOT


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as file:
        return set(file.namelist())


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name, text in {
        "mine/readers.py": "A = 1",
        "mine/labels.json": "{}",
        ".gitignore": "*.json\nruns/\n",
        ".git/objects/pack": "x" * 1000,
        "runs/train/model.safetensors": "x" * 1000,
        "venv/pyvenv.cfg": "",
        "venv/lib/big.py": "x" * 1000,
        "mine/__pycache__/readers.pyc": "x",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "mine" / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "mine" / "tool.sh").chmod(0o755)
    return folder


def test_a_process_with_the_archive_alone_runs_this_project(tmp_path: Path):
    archive = code_archive(None, tmp_path)
    (tmp_path / "node").mkdir()
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "node")
    program = (
        "import pipelines.dag.job_main, casa_core, sys; from pipelines.recipe import load_recipe;"
        "from pipelines.dag.code_version import read_versions; read_versions(); load_recipe('quickstart');"
        "print(pipelines.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "node",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "node")


def test_it_holds_what_git_keeps_of_the_packages(tmp_path: Path):
    listed = subprocess.run(
        ["git", "ls-files", "casa_core", "pipelines", "serve", "infra"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tracked = {name for name in listed.stdout.split() if "/." not in name}
    assert tracked <= names(code_archive(None, tmp_path))


def test_equal_code_makes_equal_bytes_and_other_code_another_name(tmp_path: Path, users_folder: Path):
    first = code_archive(users_folder, tmp_path / "a")
    os.utime(users_folder / "mine" / "readers.py", (1, 1))
    again = code_archive(users_folder, tmp_path / "b")
    assert (first.name, first.read_bytes()) == (again.name, again.read_bytes())
    (users_folder / "mine" / "readers.py").write_text("A = 2")
    assert code_archive(users_folder, tmp_path / "a").name != first.name
    assert first.is_file(), "another run may send it again"
    os.utime(first, (first.stat().st_mtime - KEPT_S - 1,) * 2)
    code_archive(users_folder, tmp_path / "a")
    assert not first.exists()


def test_a_users_folder_travels_without_stores_environments_and_hidden_files(
    tmp_path: Path, users_folder: Path
):
    archive = code_archive(users_folder, tmp_path, (users_folder / "runs",))
    own = {
        name for name in names(archive) if not name.startswith(("casa_core", "pipelines", "serve", "infra"))
    }
    assert own == {"mine/readers.py", "mine/labels.json", "mine/tool.sh"}
    with zipfile.ZipFile(archive) as file:
        assert file.getinfo("mine/tool.sh").external_attr >> 16 == 0o755
        assert file.getinfo("mine/labels.json").external_attr >> 16 == 0o644


def test_over_100_mib_it_says_which_files_are_large(tmp_path: Path, users_folder: Path):
    with (users_folder / "mine" / "pictures.bin").open("wb") as file:
        file.truncate(150 << 20)
    with pytest.raises(ConfigError) as raised:
        code_archive(users_folder, tmp_path / "code")
    assert "mine/pictures.bin (150 MiB)" in raised.value.why
    assert "where.ray.working_dir" in raised.value.remedy
    assert not (tmp_path / "code").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no folder"):
        code_archive(tmp_path / "absent", tmp_path)
