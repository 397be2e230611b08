"""``torch.compile``: where it can run, whole steps through it, and marks of what it must leave to Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any, Literal, TypeVar

import torch
from torch.utils._triton import has_triton

from casa_core.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., object])


def on_host(function: _Function) -> _Function:
    """Mark a function that reads or lays out something on the host: neither it nor its callees compile."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def plans(function: _Function) -> _Function:
    """Mark a function that plans on the host between parts of the model: only its callees compile."""
    return torch.compiler.disable(function, recursive=False)  # pyright: ignore[reportReturnType]


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` finds its tools: a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    return has_triton()


def wants_compiling(compile: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to compile for a device.

    Args:
        compile: ``"auto"`` compiles where the tools are.

    Raises:
        ConfigError: If it is ``True`` and the tools are missing.
    """
    if compile is True and not can_compile(device):
        tools = "C++ compiler" if device.type == "cpu" else "Triton"
        raise ConfigError(
            f"A compiled decode step was asked for, and there is no {tools} here.",
            "Its kernels are built with it.",
            'Install it (g++, or another that CXX names), or pass compile="auto": then it is optional.',
        )
    return bool(compile) and can_compile(device)


def compiled_step(method: MethodType) -> Callable[..., Any]:
    """A method of tensors as one graph for each case of its other arguments.

    The modules that it uses must not change any more. Sizes are fixed, but those marked by :func:`vary`.
    """
    # Graphs are kept by code object, and no guard tells one object's modules from another's: each has
    # code of its own.
    function = method.__func__
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)  # of such cases
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    bound = MethodType(own, method.__self__)
    return torch.compile(bound, fullgraph=True, dynamic=False, options=options)


def vary(dim: int, tensors: Sequence[torch.Tensor]) -> None:
    """Mark a dimension whose size changes from call to call; a size of 0 or 1 remains a case of its own."""
    for tensor in tensors:
        if tensor.shape[dim] > 1 and not hasattr(tensor, "_dynamo_dynamic_indices"):
            torch._dynamo.mark_dynamic(tensor, dim)
