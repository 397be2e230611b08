"""Memory of an engine, counted tensor by tensor: the reference of the memory estimate."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.train.checkpoint import zero_state


def engine_state(engine: Any) -> dict[str, int]:
    """Bytes of an engine's state between backward and update: the reference of the estimate.

    Returns:
        ``parameters``, ``gradients`` and ``optimizer``; each storage once, in the first that has it.
    """
    seen: set[int] = set()

    def count(tensors: list[torch.Tensor]) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    zero = engine.optimizer
    modules = list(engine.module.parameters())
    weights = [parameter.data for parameter in modules]
    weights += [parameter.ds_tensor.data for parameter in modules if hasattr(parameter, "ds_tensor")]
    parameters = count(weights)
    state = zero_state._torch_optimizer(engine).state
    flats = [flat.tensor for flat in zero_state.flats(engine)]
    moments = [value for own in state.values() for value in own.values() if torch.is_tensor(value)]
    optimizer = count([*(flat.data for flat in flats), *moments])
    gradients = [p.grad for p in [*modules, *flats] if p.grad is not None]
    for name in ("averaged_gradients", "fp32_groups_gradients_flat", "all_grad_tensors"):
        held = getattr(zero, name, None) or {}
        held = list(held.values()) if isinstance(held, dict) else list(held)
        gradients += [
            t for own in held for t in (own if isinstance(own, list) else [own]) if torch.is_tensor(t)
        ]
    if hasattr(zero, "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"):
        gradients += list(zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values())
    if getattr(zero, "grad_partitions_flat_buffer", None) is not None:
        gradients.append(zero.grad_partitions_flat_buffer)
    return {"parameters": parameters, "gradients": count(gradients), "optimizer": optimizer}
