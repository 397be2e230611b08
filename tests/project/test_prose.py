"""Docstrings say what things are, in the field's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import OURS, name_of, sources, tree_of

DOCUMENTED = 0.9
"""Share of the public names of a package that have a docstring."""
PRIVATE = re.compile(r"\b(seats?|whoever|examinees?|walkers?|token chooser)\b", re.IGNORECASE)
"""Words that this project once had for what the field calls slot, model, runner and sampler."""
SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)$")
LEGEND = re.compile(r"[Ss]hape suffixes?:?(.*)", re.DOTALL)


def public_names(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public classes and functions, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    inner
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name[0] != "_"
                )


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("package", OURS)
def test_public_names_have_a_docstring(package: str):
    names = [node for path in sources(package) for node in public_names(tree_of(path))]
    bare = [node.name for node in names if not ast.get_docstring(node)]
    assert len(bare) <= (1 - DOCUMENTED) * len(names), f"{len(bare)} of {len(names)} have none: {bare}"


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_no_item_of_a_docstring_begins_with_of(path: Path):
    for line, text in docstrings(tree_of(path)):
        assert not re.search(r"^\s*(?:[\w`, ]+: )?Of \w", text, re.MULTILINE), f"{name_of(path)}:{line}"


def suffixes(tree: ast.Module) -> set[str]:
    """Letters of the shape suffixes of a file's names."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    found = {match[1] for name in names if (match := SUFFIX.fullmatch(name))}
    return {letter for suffix in found for letter in suffix if letter.isalpha()}


@pytest.mark.parametrize("path", sources("casa_core"), ids=name_of)
def test_shape_suffixes_have_a_legend_atop_the_file(path: Path):
    used = suffixes(tree_of(path))
    if not used:
        return
    legend = LEGEND.search(ast.get_docstring(tree_of(path)) or "")
    assert legend, f"{name_of(path)} uses {sorted(used)} and has no legend"
    explained = set(re.findall(r"\b([A-Z])\b", legend[1]))
    assert used <= explained, f"{name_of(path)} does not explain {sorted(used - explained)}"


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_code_speaks_the_fields_words(path: Path):
    assert not PRIVATE.findall(path.read_text(encoding="utf-8"))
