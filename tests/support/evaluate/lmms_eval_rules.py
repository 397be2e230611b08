"""lmms-eval's own scoring functions, module by module, without what the harness needs besides.

The package is installed without its dependencies (``tests/packages/scoring.txt``). The ``__init__`` of its
packages would import models and data loaders; here they are bare, and third-party modules that scoring
functions import but do not use are stand-ins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

BARE = ("", ".api", ".filters", ".tasks", ".tasks._task_utils")
UNUSED = ("loguru", "datasets", "evaluate", "sacrebleu", "cv2", "pandas", "nltk", "pywsd", "tqdm")


class StandIn(ModuleType):
    """A module, and whatever is in it: calling it, and iterating over it, gives nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def registers(*given: Any, **named: Any) -> Any:
    """A decorator that registers nothing."""
    return lambda function: function


@contextmanager
def harness() -> Iterator[dict[str, ModuleType]]:
    """The harness importable module by module; afterwards nothing of it is left in ``sys.modules``."""
    found = importlib.util.find_spec("lmms_eval")
    if found is None or found.origin is None:
        pytest.skip(
            "needs lmms-eval's scoring functions: pip install --no-deps -r tests/packages/scoring.txt"
        )
    root = Path(found.origin).parent
    modules: dict[str, ModuleType] = {}
    for name in BARE:
        bare = ModuleType(f"lmms_eval{name}")
        bare.__path__ = [str(root.joinpath(*name.split(".")))]
        modules[bare.__name__] = bare
    registry = ModuleType("lmms_eval.api.registry")
    vars(registry).update(register_metric=registers, register_aggregation=registers)
    filters = ModuleType("lmms_eval.api.filter")
    vars(filters)["Filter"] = type("Filter", (), {"__init__": lambda self, **named: None})
    modules |= {module.__name__: module for module in (registry, filters)}
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    inner = ("nltk.corpus", "nltk.tokenize", "pywsd.utils")
    modules |= {n: StandIn(n) for n in (*missing, *inner) if n.partition(".")[0] in missing}
    with patch.dict(sys.modules, modules), patch.dict(os.environ, {"HF_HOME": "nowhere"}):
        yield modules


def rules(task: str) -> Any:
    """The module of a task's scoring functions, within `harness`: ``chartqa``, ``perceptiontest.val``."""
    return importlib.import_module(f"lmms_eval.tasks.{task}.utils")
