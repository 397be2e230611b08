"""Errors of the model's code say what is wrong, why, and what to do, and survive a process border."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core import errors
from casa_core.engine.sampling import LogitsError
from casa_core.errors import CasaError, ConfigError, MediaError

CORE = Path(errors.__file__).parent
KINDS = {"ConfigError", "DataError", "StoreError"}


def raised(path: Path) -> Iterator[ast.Call]:
    """Every error that a file makes of parts written out."""
    for node in ast.walk(ast.parse(path.read_text())):
        made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
        if made and not any(isinstance(part, ast.Starred) for part in node.args):
            yield node


@pytest.mark.parametrize(
    "path", sorted(CORE.rglob("*.py")), ids=lambda path: path.relative_to(CORE).as_posix()
)
def test_each_error_says_what_why_and_what_to_do(path: Path):
    names = list(inspect.signature(CasaError.__init__).parameters)[1:]
    assert names == ["what", "why", "remedy"]
    for call in raised(path):
        parts = dict(zip(names, call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
        for name in names:
            empty = name not in parts or (isinstance(parts[name], ast.Constant) and not parts[name].value)
            assert not empty, f"{path.name}:{call.lineno} has no {name}"


def test_the_guard_finds_errors_at_all():
    assert sum(len(list(raised(path))) for path in CORE.rglob("*.py")) > 80


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a", "b", "c"),
        MediaError("empty_file", "a", "b", "c"),
        LogitsError({3: "its logits hold NaN or +inf"}),
    ],
)
def test_an_error_crosses_a_process_border_whole(error: CasaError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
