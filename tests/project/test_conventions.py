"""Conventions that the whole project keeps, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

OURS = {"casa_core", "pipelines", "serve", "infra"}
MAY_IMPORT = {
    "casa_core": {"casa_core"},
    "infra": {"infra", "casa_core.errors", "casa_core.media"},
    "pipelines": {"pipelines", "casa_core", "infra"},
    "serve": {"serve", "casa_core", "infra"},
}
FORBIDDEN_IN_CORE = {"ray", "deepspeed"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 70


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file, as a dotted name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(filter(None, [base, node.module or ""]))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_imports_flow_one_way(path: Path):
    package = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        if module.split(".")[0] in OURS:
            assert any(within(module, allowed) for allowed in MAY_IMPORT[package]), (
                f"{name_of(path)}: {module}"
            )


@pytest.mark.parametrize("path", sources("casa_core"), ids=name_of)
def test_the_model_knows_nothing_of_ray_or_deepspeed(path: Path):
    assert not {module.split(".")[0] for module in imports(path)} & FORBIDDEN_IN_CORE


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_files_and_functions_stay_readable(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{name_of(path)}: {node.name}"


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_every_module_says_what_it_is(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("path", sources(*OURS, "tests"), ids=name_of)
def test_no_exception_is_swallowed_and_nothing_is_left_undone(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name_of(path)}:{node.lineno}: a bare except"
            is_all = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            does_nothing = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (is_all and does_nothing), f"{name_of(path)}:{node.lineno}: swallows everything"
        if isinstance(node, ast.Raise):
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            undone = isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
            assert not undone, f"{name_of(path)}:{node.lineno}: not implemented"


HEAVY = ("torch", "transformers", "deepspeed")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        *(
            (f"pipelines.{name}", (*HEAVY, "ray", "pyarrow", "numpy"))
            for name in ("cli", "recipe", "dag.run")
        ),
        ("infra.local_ray", (*HEAVY, "ray", "pyarrow", "numpy")),
        # What every endpoint's process takes, and Serve's own task that builds the application.
        ("serve.app", HEAVY),
        ("pipelines.data.pack.run", HEAVY),
        ("pipelines.report.run", (*HEAVY, "ray")),
    ],
)
def test_a_process_starts_without_what_it_does_not_need(module: str, heavy: tuple[str, ...]):
    program = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_errors_survive_the_way_through_a_ray_task():
    import pickle

    from casa_core import errors
    from pipelines.dag.run import StageFailed

    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    for kind in [*kinds, StageFailed]:
        arguments = (
            ("slug", "what", "why", "remedy") if kind is errors.MediaError else ("what", "why", "remedy")
        )
        error = kind(*arguments)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
