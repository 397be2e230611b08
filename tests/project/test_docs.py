"""The documents say what the tree says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def module_list():
    spec = importlib.util.spec_from_file_location("module_list", ROOT / "docs" / "module_list.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_has_its_line_in_the_list_and_no_line_is_stale(module_list):
    document = module_list.DOCUMENT.read_text(encoding="utf-8")
    assert document == module_list.replaced(document), "run: python docs/module_list.py"


def test_the_list_names_exactly_the_modules_of_the_tree(module_list):
    """Independent of the generator: headings and lines give paths, and the paths are the tree's."""
    listed, folder = set(), None
    for line in module_list.DOCUMENT.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\*\*(.+)/\*\*", line):
            folder = heading[1]
        elif folder and (entry := re.match(r"- `(\w+\.py)`: \S", line)):
            listed.add(f"{folder}/{entry[1]}")
    packages = ("casa", "casa_core", "pipelines", "serve", "infra")
    tree = {p.relative_to(ROOT).as_posix() for name in packages for p in (ROOT / name).rglob("*.py")}
    assert listed == {name for name in tree if (ROOT / name).read_text().strip()}


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_a_document_names_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:casa_core|pipelines|serve|infra|tests|docs)/[\w./]+)`", text))
    named |= {f"{Path(document).parent}/{link}" for link in re.findall(r"\]\((?!http|#)([^)]+)\)", text)}
    assert named
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


def test_every_call_of_the_two_walks_is_in_the_code():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    calls = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(calls) > 20
    for file, name in calls:
        path = next(p for p in (ROOT / file, ROOT / "pipelines" / file) if p.is_file())
        source = path.read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"(def|class) {part}\b", source), f"{file}:{name}"
