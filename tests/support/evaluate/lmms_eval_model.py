"""The plugin beside the installed lmms-eval, whose other dependencies need not be there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from casa_core.types import Image, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from tests.support.evaluate.lmms_eval_rules import StandIn
from tests.support.evaluate.questions import Drawn

MODEL = "pipelines.evaluate.lmms_eval_plugin.model"
UNUSED = ("loguru", "pytz")
"""What lmms-eval's interface of models imports to write its log and to name files: there only meanwhile."""


@contextmanager
def plugin() -> Iterator[Any]:
    """The module of the plugin's model; afterwards nothing of lmms-eval is left in ``sys.modules``."""
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("needs lmms-eval: pip install --no-deps -r tests/packages/scoring.txt")
    stand_ins = {name: StandIn(name) for name in UNUSED if importlib.util.find_spec(name) is None}
    sys.modules.update(stand_ins)
    try:
        module = importlib.import_module(MODEL)
    finally:
        for name in stand_ins:  # and not all modules as they were: torch's cannot be imported twice
            del sys.modules[name]
    try:
        yield module
    finally:
        for name in list(sys.modules):
            if name == MODEL or name.partition(".")[0] == "lmms_eval":
                del sys.modules[name]


def user(*parts: Any) -> dict[str, Any]:
    """A message of the user: texts as they are, all else as given."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def documents(source: Drawn) -> list[tuple[bytes, str]]:
    """Picture and text of the questions."""
    found = []
    for one in source.read(0, len(source)):
        assert isinstance(one, Question)
        shown, text = one.sample.parts
        assert isinstance(shown, Image)
        assert isinstance(text, Text)
        assert shown.data is not None
        found.append((shown.data, text.text))
    return found


def instances(
    model: Any,
    documents: Sequence[Any],
    settings: Mapping[str, Any],
    to_messages: Callable[[Any], Any] = lambda document: document,
) -> list[Any]:
    """Requests as a task of lmms-eval makes them; the model finds the documents in its task dictionary."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"task": {"test": documents}}
    return [
        Instance(
            request_type="generate_until",
            arguments=("", to_messages, dict(settings), at, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": at, "repeats": 1},
        )
        for at in range(len(documents))
    ]
