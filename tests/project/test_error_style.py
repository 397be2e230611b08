"""Errors are sentences: each part begins with a capital, a name or a value, and ends with a full stop."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core import errors
from tests.support.source import OURS, name_of, sources, tree_of

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {
    "StageFailed",
    "Unreachable",
    "Busy",
    "JobExists",
}


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an argument can be; what is known at run time only is ``{}``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every part of every error that a file makes."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in KINDS:
                given = node.args[1:] if name == "MediaError" else node.args  # its first is a slug
                for argument in [*given, *(word.value for word in node.keywords if word.arg != "reason")]:
                    yield from ((node.lineno, text) for text in texts(argument))


def is_sentence(text: str) -> bool:
    return not text or (not text[0].islower() and text.rstrip()[-1] in ".?!…")


@pytest.mark.parametrize("path", sources(*OURS), ids=name_of)
def test_errors_are_sentences(path: Path):
    wrong = [f"{name_of(path)}:{line}: {text}" for line, text in parts(path) if not is_sentence(text)]
    assert not wrong, "\n".join(wrong)


def test_the_guard_finds_errors_at_all():
    assert sum(len(list(parts(path))) for path in sources(*OURS)) > 600


@pytest.mark.parametrize("text", ["all slots are taken.", "All slots are taken", "{} is missing"])
def test_the_guard_sees_what_is_no_sentence(text: str):
    assert not is_sentence(text)
