"""What an installed wheel has: every file of the packages, and nothing that it reads from elsewhere."""

from __future__ import annotations

import tomllib

import pytest

from infra.code_package import PACKAGES
from tests.support.paths import ROOT

PATTERNS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_the_wheel(package):
    folder = ROOT / package
    files = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    declared = {path for pattern in PATTERNS.get(package, ()) for path in folder.glob(pattern)}
    assert files <= declared, "add them to package-data of pyproject.toml"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_code_is_a_package(package):
    """One without `__init__.py` is left out of the wheel."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("beside", ["benchmarks", "docs", "examples", "tests"])
def test_the_code_reads_nothing_beside_the_packages(beside):
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path for path in sources if f'/ "{beside}"' in path.read_text()] == []
