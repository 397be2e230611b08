"""What a CUDA graph would do, without a GPU.

A recording is a list of the operations with the shapes and addresses of their arguments, and a replay must
repeat it word for word, as a CUDA graph would whether it is right or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from casa_core.decoding.graphed_step import Function

WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}
"""Operations whose result the host waits for, or whose shape depends on it."""


class Operations(TorchDispatchMode):
    """Writes down every operation with the shapes of its tensors, and the addresses of those known before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs or {}))
        tensors = [one for one in flat if isinstance(one, torch.Tensor)]
        lasting = {_storage(one) for one in tensors} - self._made
        shown = [
            (tuple(one.shape), one.data_ptr() if _storage(one) in lasting else None)
            if isinstance(one, torch.Tensor)
            else one
            for one in flat
        ]
        self.seen.append((str(func), *shown))
        result = func(*args, **(kwargs or {}))
        outputs = [one for one in tree_flatten(result)[0] if isinstance(one, torch.Tensor)]
        self._made |= {_storage(one) for one in outputs} - lasting
        return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def record(function: Function) -> tuple[torch.Tensor, Callable[[], None]]:
    """A recording that runs again, and must do then what it did first."""
    function()  # as for a CUDA graph: what is made once, is made in the first call
    with Operations() as first:
        output = function()
    assert not WAITS & {name for name, *_ in first.seen}, "the host would wait for the device"

    def replay() -> None:
        with Operations() as again:
            result = function()
        assert again.seen == first.seen, "a replay repeats shapes and addresses"
        output.copy_(result)

    return output, replay
