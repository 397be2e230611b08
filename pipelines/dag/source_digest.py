"""What a source file's code is, and which modules it names: the same under every version of Python.

The digest is one of the syntax tree, without comments, docstrings and layout, in a notation of its own. That
of ``ast.dump`` differs between versions: 3.12 added fields, 3.13 leaves out empty ones, and which characters
``repr`` escapes follows each version's Unicode. Here a field that is empty or ``None`` is left out, as one
that an older version does not know, texts are escaped to ASCII, and an f-string's neighbouring texts, which
3.12 divides otherwise, are joined.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.code_package import PACKAGES


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of one source text.

    Attributes:
        digest: SHA-256 of its code.
        names: Modules of this project that it may name, in imports or in text. ``a.b a`` names ``a.b`` where
            there is such a module, and otherwise ``a``.
    """

    digest: str
    names: tuple[str, ...]


# Stages share most of their modules, and parsing is what takes the time: the same text is parsed once.
@functools.lru_cache(maxsize=1000)
def read_source(text: str, package: str) -> Source:
    """Parse a source text; ``package`` is the one that its relative imports begin from.

    Raises:
        SyntaxError: If it is not Python.
    """
    tree = ast.parse(text)
    names = tuple(sorted({name for name in _names(tree, package) if name.split(".", 1)[0] in PACKAGES}))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            # A text that stands alone has no effect: a docstring, or one that describes the name above it.
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and _is_text(s.value))]
            node.body = kept or [ast.Pass()]
    return Source(hashlib.sha256(_notation(tree).encode("ascii")).hexdigest(), names)


def _notation(value: Any) -> str:
    """A tree as text: ``Name(id='x',ctx=Load(),)``."""
    if isinstance(value, list):
        return f"[{','.join(map(_notation, value))}]"
    if not isinstance(value, ast.AST):
        return ascii(value)
    fields = {name: getattr(value, name, None) for name in value._fields}
    if isinstance(value, ast.JoinedStr):
        fields["values"] = _joined(value.values)
    known = (f"{name}={_notation(field)}," for name, field in fields.items() if field not in (None, []))
    return f"{type(value).__name__}({''.join(known)})"


def _joined(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts as one, and without empty ones."""
    joined: list[ast.expr] = []
    for part in parts:
        before = joined[-1] if joined else None
        if not (isinstance(part, ast.Constant) and isinstance(part.value, str)):
            joined.append(part)
        elif isinstance(before, ast.Constant) and isinstance(before.value, str):
            joined[-1] = ast.Constant(before.value + part.value)
        elif part.value:
            joined.append(ast.Constant(part.value))
    return joined


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.If) and _for_type_checkers(node.test):
        for branch in node.orelse:
            yield from _names(branch, package)
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        yield from _from_names(node, package)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        name = node.value.partition(":")[0]
        if all(part.isidentifier() for part in name.split(".")):
            yield name
    for child in ast.iter_child_nodes(node):
        yield from _names(child, package)


def _from_names(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        yield f"{base}.{alias.name} {base}"


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
