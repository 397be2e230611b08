"""Versions of stages' code: source cannot change unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.dag import code_version
from pipelines.dag.code_version import (
    PACKAGES,
    PLUMBING,
    ROOT,
    STAGE_MODULES,
    VERSIONS_FILE,
    assets_beside,
    module_file,
    reachable,
    stage_digest,
)

MODULES = {"toy": "pipelines.toy"}


def test_no_stage_changed_without_its_version_being_looked_at():
    changed = code_version.changed_stages()
    assert not changed, (
        f"the source behind {', '.join(changed)} changed: "
        "run `python -m pipelines.dag.code_version --update`, with --same-results if the results stay the "
        "same, and commit stage_versions.json"
    )


def test_every_stage_has_a_module_and_a_version():
    recorded = code_version.read_versions(VERSIONS_FILE)
    assert recorded.keys() == STAGE_MODULES.keys()
    assert all(module_file(module, ROOT) is not None for module in STAGE_MODULES.values())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of the same layout: a stage, a helper it imports late, and a stranger."""
    files = {
        "pipelines/__init__.py": "",
        "pipelines/toy.py": '"""Doc."""\nfrom pipelines import helper\ndef run():\n  return helper.two()\n',
        "pipelines/helper.py": "def two():\n    from casa_core.deep import one\n\n    return one() + 1\n",
        "pipelines/stranger.py": "x = 1\n",
        "pipelines/late.py": "y = 1\n",
        "casa_core/__init__.py": "from casa_core import everything\n",
        "casa_core/everything.py": "z = 1\n",
        "casa_core/deep.py": "def one():\n    return 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    code_version.update(tmp_path / "versions.json", MODULES, tmp_path)
    return tmp_path


def current(project: Path) -> str:
    return code_version.current_versions(project / "versions.json", MODULES, project)["toy"]


def test_a_stage_rests_on_what_it_imports_and_on_nothing_else(project: Path):
    # The package `casa_core` re-exports much; importing one of its modules does not mean all of them.
    expected = {"pipelines.toy", "pipelines.helper", "casa_core.deep"}
    assert reachable("pipelines.toy", project).keys() == expected


def test_a_fresh_record_is_version_1(project: Path):
    assert current(project) == "1"
    assert code_version.changed_stages(project / "versions.json", MODULES, project) == []


@pytest.mark.parametrize("module", ["pipelines/toy.py", "pipelines/helper.py", "casa_core/deep.py"])
def test_changed_code_is_noticed_and_makes_artifacts_of_its_own(project: Path, module: str):
    path = project / module
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    assert code_version.changed_stages(project / "versions.json", MODULES, project) == ["toy"]
    assert current(project).startswith("1+")


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("pipelines/stranger.py", "x = 2\n"),
        ("casa_core/everything.py", "z = 2\n"),
        (
            "pipelines/toy.py",
            "# A comment.\nfrom pipelines import helper\ndef run():\n  'Doc.'\n  return helper.two()",
        ),
    ],
)
def test_strangers_comments_docstrings_and_formatting_do_not_count(project: Path, module: str, text: str):
    (project / module).write_text(text)
    assert current(project) == "1"


def test_updating_moves_the_version(project: Path):
    (project / "pipelines/helper.py").write_text("def two():\n    return 3\n")
    assert code_version.update(project / "versions.json", MODULES, project) == ["toy"]
    assert current(project) == "2"


def test_a_refactoring_with_the_same_results_keeps_it(project: Path):
    (project / "pipelines/helper.py").write_text("def two():\n    return 1 + 1\n")
    code_version.update(project / "versions.json", MODULES, project, same_results=True)
    assert current(project) == "1"


def test_a_module_named_in_text_counts_and_one_for_type_checkers_does_not(project: Path):
    (project / "pipelines/toy.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pipelines import stranger\n"
        "LATE = 'pipelines.late:run'\n"
    )
    assert reachable("pipelines.toy", project).keys() == {"pipelines.toy", "pipelines.late"}


def test_relative_imports_are_followed(project: Path):
    (project / "pipelines/toy.py").write_text("from . import helper\nfrom .late import y\n")
    assert "pipelines.late" in reachable("pipelines.toy", project)
    assert "pipelines.helper" in reachable("pipelines.toy", project)


@pytest.fixture(scope="module")
def copied_project(tmp_path_factory) -> Path:
    """A copy of this project's packages."""
    root = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def digests(root: Path) -> dict[str, str]:
    return {kind: stage_digest(module, root) for kind, module in STAGE_MODULES.items()}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("pipelines/html/report.css", {"report", "compare"}),
        ("pipelines/html/report.js", {"report", "compare"}),
        ("pipelines/html/scale.py", {"report", "compare"}),
        ("pipelines/html/charts.py", {"report", "compare"}),
        ("pipelines/cards/card.css", {"report"}),
        ("serve/web/app.js", {"deploy"}),
        ("serve/web/style.css", {"deploy"}),
        ("serve/web/index.html", {"deploy"}),
        ("serve/web/icon.svg", {"deploy"}),
    ],
)
def test_an_edited_asset_or_axis_helper_moves_the_stages_that_it_changes_and_no_other(
    copied_project: Path, file: str, stages: set[str]
):
    before = digests(copied_project)
    path = copied_project / file
    original = path.read_bytes()
    path.write_bytes(original + b"\nMORE = 1\n")
    after = digests(copied_project)
    path.write_bytes(original)
    assert {kind for kind in before if before[kind] != after[kind]} == stages


def test_training_and_data_stages_do_not_reach_the_drawing_of_pages():
    for kind in ("corpus", "clean", "pack", "train", "evaluate"):
        reached = reachable(STAGE_MODULES[kind], ROOT, exclude=PLUMBING)
        assert not [name for name in reached if name.startswith(("pipelines.html", "pipelines.cards"))]


def test_every_asset_is_part_of_a_stages_version():
    counted = {
        path
        for module in STAGE_MODULES.values()
        for path in assets_beside(reachable(module, ROOT, exclude=PLUMBING).values())
    }
    suffixes = {".css", ".html", ".js", ".svg"}
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    outside = {path for path in files if path.suffix in suffixes} - counted
    assert {path.parent for path in outside} == {ROOT / "pipelines" / "evaluate" / "pages"}, (
        "only the pages of `casa evaluate`, which no stage writes"
    )
