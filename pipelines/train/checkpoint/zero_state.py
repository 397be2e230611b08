"""Which part of the training state each worker holds, under every ZeRO stage, as spans of named parameters.

DeepSpeed updates flat float32 tensors that hold the trainable parameters in its own order, cut over workers,
with padding. Spans of flattened parameters depend on neither ZeRO stage nor number of workers: a checkpoint
stores them, and any other arrangement reads its own spans from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from casa_core.errors import StoreError

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""State per element: its float32 weight, and Adam's two moments."""

Reader = Callable[[str, str, int, int], torch.Tensor]
"""(kind, parameter, start, length) → that part of the flattened parameter, 1-D."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a flattened parameter.

    Attributes:
        name: The parameter's name in the model.
        start, length: Elements of the flattened parameter.
        offset: First element in the flat tensor.
    """

    name: str
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Flat:
    """A tensor that the optimizer updates as one.

    Attributes:
        tensor: 1-D float32 (any shape without ZeRO); the optimizer's key to its state.
        spans: Its parts that are parameters; the rest is padding.
    """

    tensor: torch.Tensor
    spans: tuple[Span, ...]


def flats(engine: Any) -> list[Flat]:
    """The flat tensors that this worker updates; without ZeRO, every worker has each whole parameter."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [
            Flat(parameter, (Span(name, 0, parameter.numel(), 0),))
            for name, parameter in engine.module.named_parameters()
            if parameter.requires_grad
        ]
    if stage == 3:
        return [
            Flat(tensor, tuple(_partitioned(zero, group, names)))
            for tensor, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        ]
    # bf16 under ZeRO-1 has another optimizer than the rest of stages 1 and 2, with other names.
    bf16 = hasattr(zero, "fp32_groups_flat_partition")
    tensors = zero.fp32_groups_flat_partition if bf16 else zero.single_partition_of_fp32_groups
    groups = zero.bf16_groups if bf16 else zero.bit16_groups
    return [Flat(tensor, tuple(_mapped(group, names))) for tensor, group in zip(tensors, groups, strict=True)]


def _partitioned(zero: Any, group: list[Any], names: dict[int, str]) -> Iterator[Span]:
    """This worker's spans under ZeRO-3: every parameter is cut over all workers, the last part padded."""
    for parameter in group:
        _, offset, part = zero.grad_position[zero.get_param_id(parameter)]
        start = _rank() * part
        length = min(part, parameter.ds_numel - start)
        if length > 0:
            yield Span(names[id(parameter)], start, length, offset)


def _mapped(group: list[Any], names: dict[int, str]) -> Iterator[Span]:
    """This worker's spans under ZeRO-1 and -2: a group's parameters, concatenated and cut over workers."""
    for parameter in group:
        mapping = parameter._hp_mapping
        if mapping is not None:
            inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Span(names[id(parameter)], inside.start, inside.numel, flat.start)


def own_spans(engine: Any) -> list[tuple[torch.Tensor, Span]]:
    """What this worker stores: its own spans; without ZeRO, an equal share of each parameter."""
    if engine.zero_optimization_stage():
        return [(flat.tensor, span) for flat in flats(engine) for span in flat.spans]
    rank, workers = _rank(), dist.get_world_size()
    shares = []
    for flat in flats(engine):
        (span,) = flat.spans
        start, end = (span.length * edge // workers for edge in (rank, rank + 1))
        if end > start:
            shares.append((flat.tensor, Span(span.name, start, end - start, start)))
    return shares


def capture(engine: Any) -> dict[tuple[str, str, int], torch.Tensor]:
    """Copies of this worker's part in host memory: (kind, parameter, start) → 1-D float32."""
    state = _torch_optimizer(engine).state
    copies = {}
    for tensor, span in own_spans(engine):
        for kind in KINDS:
            source = tensor.detach() if kind == "master" else state[tensor][kind]
            part = source.reshape(-1).narrow(0, span.offset, span.length)
            copy = torch.empty(span.length, dtype=torch.float32, pin_memory=part.is_cuda)
            copies[kind, span.name, span.start] = copy.copy_(part, non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copies


def updates_done(engine: Any) -> int:
    """Adam's count of updates, the same for every parameter.

    Raises:
        StoreError: If the counts differ: the state is not one that every step has updated.
    """
    state = _torch_optimizer(engine).state
    counts = {int(state[flat.tensor]["step"]) for flat in flats(engine)}
    if len(counts) != 1:
        raise StoreError(
            f"The optimizer has counted {sorted(counts)} updates.",
            "Every parameter is updated in every step, so there should be one count.",
            "Report this with the recipe: a checkpoint of such a state would not resume exactly.",
        )
    return counts.pop()


def restore(engine: Any, read: Reader, updates: int) -> None:
    """Set this worker's master weights and moments, then the weights that forwards read; all workers call it.

    Args:
        engine: From :func:`pipelines.train.zero.wrap`.
        read: Reads spans of the checkpoint.
        updates: Adam's count of updates.
    """
    state = _torch_optimizer(engine).state
    with torch.no_grad():
        for flat in flats(engine):
            own = state[flat.tensor]
            # On the GPU, where the fused update dereferences it; a CPU tensor's address is wrong there.
            own["step"] = torch.tensor(float(updates), device=flat.tensor.device)
            for kind in KINDS[1:]:
                own.setdefault(kind, torch.zeros_like(flat.tensor, requires_grad=False))
            for kind in KINDS:
                target = (flat.tensor if kind == "master" else own[kind]).detach().view(-1)
                for span in flat.spans:
                    part = read(kind, span.name, span.start, span.length)
                    target.narrow(0, span.offset, span.length).copy_(part)
    _refresh(engine)


def _refresh(engine: Any) -> None:
    """Set the weights that forwards read from the float32 ones, as DeepSpeed does at the end of an update."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        for number in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        _gather_persistent(zero)


def _gather_persistent(zero: Any) -> None:
    """Gather the small parameters that ZeRO-3 keeps whole on every worker."""
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def frozen_names(engine: Any) -> list[str]:
    """Names of the parameters that do not train."""
    return [name for name, parameter in engine.module.named_parameters() if not parameter.requires_grad]


def gather_frozen(engine: Any) -> dict[str, torch.Tensor]:
    """Name → whole frozen parameter in host memory on rank 0, empty elsewhere; all workers call it."""
    found = {}
    for name in frozen_names(engine):
        parameter = engine.module.get_parameter(name)
        with _whole(parameter):
            if _rank() == 0:
                found[name] = parameter.detach().to("cpu", copy=True)
    return found


def restore_frozen(engine: Any, read: Callable[[str, int, int], torch.Tensor]) -> None:
    """Set frozen parameters; all workers call it.

    Args:
        read: (parameter, start, length) → that part of it, flattened.
    """
    with torch.no_grad():
        for name in frozen_names(engine):
            parameter: Any = engine.module.get_parameter(name)
            if not hasattr(parameter, "ds_tensor"):
                parameter.copy_(read(name, 0, parameter.numel()).view_as(parameter))
                continue
            part = parameter.ds_tensor.numel()
            start = _rank() * part
            length = min(part, parameter.ds_numel - start)
            if length > 0:
                parameter.ds_tensor.narrow(0, 0, length).copy_(read(name, start, length))
    if engine.zero_optimization_stage() == 3:
        _gather_persistent(engine.optimizer)


def shapes(engine: Any) -> dict[str, list[int]]:
    """Name → whole shape of every parameter, trained and frozen."""
    return {
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
    }


def _whole(parameter: nn.Parameter) -> Any:
    from contextlib import nullcontext

    if not hasattr(parameter, "ds_tensor"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def _rank() -> int:
    return dist.get_rank()
