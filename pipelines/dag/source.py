"""Reading this project's own source without running it: what a module imports, and what its code says."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("casa_core", "pipelines", "serve", "infra")


def reachable(module: str, root: Path, *, exclude: Sequence[str] = ()) -> dict[str, Path]:
    """Modules of this project that ``module`` can reach by import, itself included: name → file.

    Imports inside functions count. So do module names in text (``"pipelines.data.clean.run:run_stage"``), because
    that is how optional parts are loaded late. Imports for type checkers do not count.

    Args:
        module: Dotted name of the entry module.
        root: Folder that holds the packages.
        exclude: Modules, or packages with everything in them, that are left out.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is None or name in found or any(name == e or name.startswith(f"{e}.") for e in exclude):
            continue
        found[name] = path
        waiting += imported_modules(path, name, root)
    return found


def module_file(name: str, root: Path) -> Path | None:
    """Source of a module or package of this project; ``None`` for anything else."""
    if name.split(".", 1)[0] not in PACKAGES or not all(part.isidentifier() for part in name.split(".")):
        return None
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(path: Path, name: str, root: Path) -> set[str]:
    """Modules of this project that one file names in imports or in text."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return {
        name for name in _all_names(path.read_text(), package, root) if module_file(name, root) is not None
    }


def source_digest(path: Path) -> str:
    """SHA-256 of what a file's code says: without comments, docstrings and formatting."""
    return _text_digest(path.read_text())


# Stages share most of their modules, and parsing is what takes the time: the same text is parsed once.
@functools.lru_cache(maxsize=1000)
def _all_names(text: str, package: str, root: Path) -> frozenset[str]:
    return frozenset(_names(ast.parse(text), package, root))


@functools.lru_cache(maxsize=1000)
def _text_digest(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            # A text that stands alone has no effect: a docstring, or one that describes the name above it.
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and _is_text(s.value))]
            node.body = kept or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _names(node: ast.AST, package: str, root: Path) -> Iterator[str]:
    if isinstance(node, ast.If) and _for_type_checkers(node.test):
        for branch in node.orelse:
            yield from _names(branch, package, root)
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        yield from _from_names(node, package, root)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value.partition(":")[0]
    for child in ast.iter_child_nodes(node):
        yield from _names(child, package, root)


def _from_names(node: ast.ImportFrom, package: str, root: Path) -> Iterator[str]:
    """``from a import b`` names module ``a.b`` where there is one, and otherwise something inside ``a``."""
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if module_file(inner, root) is not None else base


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
