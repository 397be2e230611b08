"""Versions of stages' code: source cannot change unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dag import versions
from pipelines.dag.source import module_file, reachable
from pipelines.dag.versions import ROOT, STAGE_MODULES, VERSIONS_FILE

MODULES = {"toy": "pipelines.toy"}


def test_no_stage_changed_without_its_version_being_looked_at():
    changed = versions.changed_stages()
    assert not changed, (
        f"the source behind {', '.join(changed)} changed: run `python -m pipelines.dag.versions --update`, "
        "with --same-results if the results stay the same, and commit stage_versions.json"
    )


def test_every_stage_has_a_module_and_a_version():
    recorded = versions.read_versions(VERSIONS_FILE)
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
    versions.update(tmp_path / "versions.json", MODULES, tmp_path)
    return tmp_path


def current(project: Path) -> str:
    return versions.current_versions(project / "versions.json", MODULES, project)["toy"]


def test_a_stage_rests_on_what_it_imports_and_on_nothing_else(project: Path):
    # The package `casa_core` re-exports much; importing one of its modules does not mean all of them.
    expected = {"pipelines.toy", "pipelines.helper", "casa_core.deep"}
    assert reachable("pipelines.toy", project).keys() == expected


def test_a_fresh_record_is_version_1(project: Path):
    assert current(project) == "1"
    assert versions.changed_stages(project / "versions.json", MODULES, project) == []


@pytest.mark.parametrize("module", ["pipelines/toy.py", "pipelines/helper.py", "casa_core/deep.py"])
def test_changed_code_is_noticed_and_makes_artifacts_of_its_own(project: Path, module: str):
    path = project / module
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    assert versions.changed_stages(project / "versions.json", MODULES, project) == ["toy"]
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
    assert versions.update(project / "versions.json", MODULES, project) == ["toy"]
    assert current(project) == "2"


def test_a_refactoring_with_the_same_results_keeps_it(project: Path):
    (project / "pipelines/helper.py").write_text("def two():\n    return 1 + 1\n")
    versions.update(project / "versions.json", MODULES, project, same_results=True)
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
