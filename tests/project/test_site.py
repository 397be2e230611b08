"""The documentation's site has every document, and every link of a document leads somewhere on it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from docs.build_site import Pages, entries, project
from tests.support.paths import ROOT

NAVIGATION = list(entries(project()["nav"]))


def test_every_document_stands_in_the_navigation_once():
    documents = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert documents <= set(NAVIGATION)
    assert len(NAVIGATION) == len(set(NAVIGATION))


def test_every_entry_of_the_navigation_and_every_linked_file_is_there(tmp_path: Path):
    pages = Pages(ROOT, tmp_path)
    for name in NAVIGATION:
        pages.lay(name)
    assert not pages.missing
    assert all((tmp_path / name).is_file() for name in NAVIGATION)


def test_links_are_turned_to_pages_of_what_they_name_and_a_missing_file_is_reported(tmp_path: Path):
    root, to = tmp_path / "root", tmp_path / "to"
    (root / "docs").mkdir(parents=True)
    (root / "code").mkdir()
    (root / "code" / "a.py").write_text("x = 1\n")
    (root / "picture.svg").write_text("<svg/>")
    (root / "docs" / "a.md").write_text(
        "[code](../code/a.py#L1) [folder](../code) ![drawn](../picture.svg) [gone](b.md) `[as code](c.md)`\n"
        "[elsewhere](https://example.org) [below](#here)\n"
    )
    pages = Pages(root, to)
    assert pages.lay("docs/a.md") == "docs/a.md"
    assert (to / "docs" / "a.md").read_text() == (
        "[code](../code/a.py.md) [folder](../code/index.md) ![drawn](../picture.svg) [gone](b.md) "
        "`[as code](c.md)`\n[elsewhere](https://example.org) [below](#here)\n"
    )
    assert pages.missing == ["docs/a.md: b.md"]
    assert "x = 1" in (to / "code" / "a.py.md").read_text()
    assert "(a.py.md)" in (to / "code" / "index.md").read_text()
    assert (to / "picture.svg").is_file()


@pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="needs casa[docs]; `make docs` runs it"
)
def test_the_site_is_built_without_a_warning():
    subprocess.run([sys.executable, "-m", "docs.build_site"], cwd=ROOT, check=True)
    assert (ROOT / "build" / "site" / "index.html").is_file()
