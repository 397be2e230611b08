"""Where things are: one room per concept, imports without circles, tests that mirror the packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.source import circle, module_imports, name_of, room_imports, sources

FILES_IN_A_FOLDER = 20
ROOMS_OF_THEIR_OWN = {"support", "project", "packages"}
"""Folders of tests that belong to no package."""


def test_no_two_modules_import_each_other_however_late_or_far_around():
    assert not circle(module_imports())


def test_no_two_packages_import_each_other():
    assert not circle(room_imports())


def test_the_search_finds_a_circle_where_there_is_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def folders() -> list[Path]:
    files = [
        path
        for top in ("casa_core", "pipelines", "serve", "infra", "tests")
        for path in (ROOT / top).rglob("*")
    ]
    return sorted({path.parent for path in files if path.is_file() and "__pycache__" not in path.parts})


@pytest.mark.parametrize("folder", folders(), ids=name_of)
def test_no_folder_holds_more_than_can_be_taken_in_at_a_glance(folder: Path):
    assert (
        sum(path.is_file() and path.name != "__init__.py" for path in folder.iterdir()) <= FILES_IN_A_FOLDER
    )


def test_tests_lie_where_their_packages_do():
    rooms = {"core": ROOT / "casa_core", "serve": ROOT / "serve", "infra": ROOT / "infra"}
    for path in sources("tests"):
        room, *inner = path.relative_to(ROOT / "tests").parts[:-1] or (None,)
        if room is None or room in ROOMS_OF_THEIR_OWN:
            continue
        mirrored = rooms.get(room, ROOT / "pipelines" / room).joinpath(*inner)
        assert mirrored.is_dir(), f"{name_of(path)} mirrors no package"
