"""Marks for ``torch.compile``: what it must leave to Python, because it is planned on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., object])


def on_host(function: _Function) -> _Function:
    """Mark a function that reads or lays out something on the host: neither it nor its callees compile."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def plans(function: _Function) -> _Function:
    """Mark a function that plans on the host between parts of the model: only its callees compile."""
    return torch.compiler.disable(function, recursive=False)  # pyright: ignore[reportReturnType]
