"""Functions by name: stages are named in a plan, and imported only where they are called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from casa_core.errors import ConfigError


def load_function(path: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises:
        ConfigError: If it names no such function.
    """
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # The module is there, and something that it imports is not.
        raise ConfigError(
            f"There is no stage function {path}.", str(error), "check the module's name"
        ) from None
    except AttributeError as error:
        raise ConfigError(
            f"There is no stage function {path}.", str(error), "define it in the module"
        ) from None
