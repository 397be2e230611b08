"""Defaults of a stage's settings stand once, in the recipe."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import name_of, sources, tree_of

STAGES = ("data", "train", "evaluate", "deploy", "report", "compare", "cost")
SETTINGS = {"settings", "placement", "what", "where", "train", "evaluate", "deploy", "data"}


def defaults(tree: ast.Module) -> Iterator[str]:
    """Defaults of settings classes, and of reads by key from settings or placement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(
            "stage_settings" in ast.unparse(d) for d in node.decorator_list
        ):
            yield from (
                ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign) and line.value
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            if isinstance(owner, ast.Attribute) and ast.unparse(owner.value) in {"context", "self", "job"}:
                name = owner.attr  # another artifact's settings, out of its manifest, may lack a key
            if name in SETTINGS and node.args and isinstance(node.args[0], ast.Constant):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", sources(*(f"pipelines/{room}" for room in STAGES)), ids=name_of)
def test_no_stage_states_a_default_of_its_settings(path: Path):
    assert list(defaults(tree_of(path))) == []


def test_the_guard_finds_defaults():
    text = "@stage_settings\nclass A:\n    x: int = 1\n\ncontext.placement.get('workers', 2)\n"
    assert list(defaults(ast.parse(text))) == ["x: int = 1", "context.placement.get('workers', 2)"]
