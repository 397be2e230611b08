"""Digests of source: the same under every version of Python, and kept from command to command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dag import code_version, source_digest
from pipelines.dag.code_version import ROOT, STAGE_MODULES, Sources, stage_digest
from pipelines.dag.source_digest import read_source

TRAPS = Path(__file__).parents[1] / "support/dag/every_syntax.txt"
"""What versions of Python are known to parse, dump or print in different ways, in the syntax of 3.11."""
RECORDED = "3b8e8c7538fc3ba895eb4570b06f7d44969e893550e957a5223ea88e8278c9ad"
ALL = """
import hashlib, sys
from pathlib import Path
from infra.code_package import PACKAGES
from pipelines.dag.source_digest import read_source
paths = [Path(sys.argv[1]), *(path for package in PACKAGES for path in sorted(Path(package).rglob("*.py")))]
print(sys.version_info[:2], file=sys.stderr)
for path in paths:
    print(path, read_source(path.read_text(encoding="utf-8"), "a.b"))
"""
OTHERS = ("3.12", "3.13")


def interpreter(version: str) -> str:
    """A Python of another version on this machine."""
    installed = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*")
    )
    found = [shutil.which(f"python{version}"), *(str(folder / "bin/python") for folder in installed)]
    for python in filter(None, found):
        if not subprocess.run([python, "-c", ""], capture_output=True).returncode:
            return python
    pytest.skip(f"there is no Python {version} here")


def digests_by(python: str) -> str:
    command = [python, "-B", "-c", ALL, str(TRAPS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_digests_are_those_that_were_recorded():
    assert read_source(TRAPS.read_text(encoding="utf-8"), "a.b").digest == RECORDED


@pytest.mark.parametrize("version", OTHERS)
def test_another_version_of_python_finds_the_same_in_every_source(version: str):
    assert digests_by(interpreter(version)) == digests_by(sys.executable)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = '1'", "x = b'1'"),
        ("x = None", "x = ()"),
        ("x = 0.0", "x = -0.0"),
        ("f(a, b)", "f(a, *b)"),
        ("def f(a, b=None): g()", "def f(a, *, b=None): g()"),
        ("x = f'{a}b'", "x = f'{a!r}b'"),
        ("x = f'{a}b'", "x = f'{a:b}'"),
        ("x = [a, b]", "x = [[a], b]"),
        ("lambda: None", "lambda x: None"),
        ("if a: b()\nelse: c()", "if a: b()\nc()"),
        ("x = {'a': 1, **b}", "x = {'a': 1, 'b': b}"),
    ],
)
def test_other_code_has_another_digest(one: str, other: str):
    assert read_source(one, "p").digest != read_source(other, "p").digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 'a' 'b'", "x = 'ab'"),
        ("x = f'a' f'{b}' 'c' 'd'", "x = f'a{b}cd'"),
        ("x = (1_000)", "x = 1000  # as before"),
        ("def f():\n  'Doc.'\n  return 1", "def f(): return 1"),
    ],
)
def test_other_spellings_of_the_same_code_do_not(one: str, other: str):
    assert read_source(one, "p").digest == read_source(other, "p").digest


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project of two modules that have not changed for long."""
    (tmp_path / "pipelines").mkdir()
    write(tmp_path / "pipelines/toy.py", "from pipelines import helper\n")
    write(tmp_path / "pipelines/helper.py", "x = 1\n")
    (tmp_path / "session").mkdir()
    return tmp_path


def write(path: Path, text: str, at: int = 1_700_000_000) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


def digest(root: Path) -> str:
    sources = Sources(root / "session/sources.json")
    found = stage_digest("pipelines.toy", root, sources)
    sources.save()
    return found


def test_nothing_is_parsed_that_was_parsed_before(toy: Path, monkeypatch: pytest.MonkeyPatch):
    found = digest(toy)
    assert found == stage_digest("pipelines.toy", toy)

    def parse(text: str, package: str) -> None:
        raise AssertionError(f"parsed again: {text}")

    monkeypatch.setattr(code_version, "read_source", parse)
    assert digest(toy) == found


def test_a_changed_source_is_parsed_whatever_its_size(toy: Path):
    before = digest(toy)
    write(toy / "pipelines/helper.py", "x = 2\n", at=1_700_000_001)
    assert digest(toy) == stage_digest("pipelines.toy", toy) != before


def test_a_source_that_has_just_changed_is_not_kept_as_it_may_change_again_in_no_time(toy: Path):
    (toy / "pipelines/helper.py").write_text("x = 3\n")
    first = digest(toy)
    kept = json.loads((toy / "session/sources.json").read_text())["files"]
    assert [Path(key.partition(":")[0]).name for key in kept] == ["toy.py"]
    status = (toy / "pipelines/helper.py").stat()
    (toy / "pipelines/helper.py").write_text("x = 4\n")
    os.utime(toy / "pipelines/helper.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest(toy) != first


def test_what_other_rules_found_does_not_count(toy: Path, monkeypatch: pytest.MonkeyPatch):
    found = digest(toy)
    kept = json.loads((toy / "session/sources.json").read_text())
    kept["files"] = {key: ["old", []] for key in kept["files"]}
    (toy / "session/sources.json").write_text(json.dumps(kept))
    assert digest(toy) != found
    rules = toy / "source_digest.py"
    rules.write_text(Path(source_digest.__file__).read_text() + "\nNEW = 1\n")
    monkeypatch.setattr(source_digest, "__file__", str(rules))
    assert digest(toy) == found


def test_a_damaged_file_or_one_that_cannot_be_written_costs_time_alone(toy: Path):
    found = digest(toy)
    (toy / "session/sources.json").write_bytes(bytes(4096))
    assert digest(toy) == found
    shutil.rmtree(toy / "session")
    (toy / "session").write_text("in its place")
    assert digest(toy) == found


def test_the_kept_sources_give_every_stage_its_digest(tmp_path: Path):
    first, again = ({k: digest_of(m, tmp_path) for k, m in STAGE_MODULES.items()} for _ in range(2))
    assert first == again == {kind: stage_digest(module) for kind, module in STAGE_MODULES.items()}


def digest_of(module: str, folder: Path) -> str:
    sources = Sources(folder / "sources.json")
    found = stage_digest(module, sources=sources)
    sources.save()
    return found
