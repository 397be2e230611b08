"""The project's own source as tests see it: files, who imports whom, circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

OURS = ("casa", "casa_core", "pipelines", "serve", "infra")


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file, of every module."""
    found = {}
    for path in sources(*OURS):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Our modules that a file imports at run time, wherever in the file: a late import counts."""
    found: set[str] = set()
    for node in _at_run_time(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules()}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in modules() else {str(node.module)} & modules().keys()
    return found


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    is_for_types = (
        isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    for child in node.orelse if is_for_types else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from _at_run_time(child)


@cache
def module_imports() -> dict[str, set[str]]:
    """Module → the modules that it imports."""
    return {name: imports(path) for name, path in modules().items()}


def room_of(module: str) -> str:
    """The folder that a module lies in; a module beside the packages of a top level is a room of its own."""
    path = modules()[module]
    folder = path.relative_to(ROOT).parent
    return folder.as_posix() if len(folder.parts) > 1 else name_of(path)


def room_imports() -> dict[str, set[str]]:
    """Room → the rooms whose modules it imports."""
    found: dict[str, set[str]] = {room_of(name): set() for name in modules()}
    for name, imported in module_imports().items():
        found[room_of(name)] |= {room_of(other) for other in imported} - {room_of(name)}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of one circle, in order; empty where there is none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := search(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])
