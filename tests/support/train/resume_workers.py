"""Workers that restore a checkpoint and compare every element with it, by DeepSpeed's own functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from casa_core.processing.processor import CasaProcessor
from pipelines.train.checkpoint.resume import Parts, resume
from pipelines.train.checkpoint.save import FROZEN, list_checkpoints
from pipelines.train.checkpoint.tensor_file import TensorFile
from pipelines.train.settings import TrainJob
from pipelines.train.worker import build_engine


@dataclass(frozen=True, slots=True)
class Check:
    """Restore ``job``'s checkpoints and write what differs to ``report``."""

    job: TrainJob
    report: str


def check_restored(rank: int, world_size: int, checks: Sequence[Check]) -> None:
    """Runs in each worker of a group."""
    for check in checks:
        processor = CasaProcessor.from_pretrained(Path(check.job.pack) / "tokenizer")
        assert isinstance(processor, CasaProcessor)
        engine = build_engine(check.job, processor, world_size)
        root = Path(check.job.checkpoints)
        done = resume(engine, root, rank=rank, world_size=world_size)
        differing = _differing(engine, root)
        if rank == 0:
            Path(check.report).write_text(json.dumps({"done": done, "differing": differing}))
        dist.barrier()


def _differing(engine: Any, root: Path) -> list[str]:
    import deepspeed

    saved = list_checkpoints(root)[-1]
    parts, frozen = Parts(saved), TensorFile(root / FROZEN)
    _link_moments(engine)
    wrong: list[str] = []
    for name, parameter in engine.module.named_parameters():
        size = torch.Size(saved.marks["shapes"][name]).numel()
        if parameter.requires_grad:
            stored = {kind: parts.read(kind, name, 0, size) for kind in ("master", "exp_avg", "exp_avg_sq")}
            found = _state(engine, parameter)
            wrong += [f"{kind} of {name}" for kind in stored if not torch.equal(found[kind], stored[kind])]
            expected = stored["master"].to(parameter.dtype)
        else:
            expected = frozen.read(name)
        with deepspeed.zero.GatheredParameters([parameter]):
            if not torch.equal(parameter.detach().flatten(), expected):
                wrong.append(f"weight of {name}")
    return wrong


def _state(engine: Any, parameter: Any) -> dict[str, torch.Tensor]:
    """A parameter's whole float32 weight and moments, flattened, by DeepSpeed's public functions."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        own = engine.optimizer.state[parameter]
        found = {"master": parameter.detach(), **{kind: own[kind] for kind in ("exp_avg", "exp_avg_sq")}}
    else:
        found = {"master": safe_get_full_fp32_param(parameter)}
        for kind in ("exp_avg", "exp_avg_sq"):
            found[kind] = safe_get_full_optimizer_state(parameter, kind)
    return {kind: value.flatten().float() for kind, value in found.items() if value is not None}


def _link_moments(engine: Any) -> None:
    """DeepSpeed finds moments under ZeRO-1 and -2 only once it has stepped."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    zero = engine.optimizer
    if engine.zero_optimization_stage() not in (1, 2):
        return
    bf16 = hasattr(zero, "fp32_groups_flat_partition")
    groups = zero.bf16_groups if bf16 else zero.bit16_groups
    tensors = zero.fp32_groups_flat_partition if bf16 else zero.single_partition_of_fp32_groups
    for group, tensor in zip(groups, tensors, strict=True):
        lazy_init_hp_params_optimizer_state(group, tensor, zero.optimizer.state)
