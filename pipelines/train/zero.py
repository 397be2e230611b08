"""DeepSpeed ZeRO around the model: which state is sharded, and how full weights come back out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ADAM_BETAS = (0.9, 0.99)
"""0.99 rather than AdamW's 0.999: runs of a thousand steps end before a slower second moment has warmed
up."""


def zero_config(*, stage: int, world_size: int, clip_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration. Batch sizes are nominal: batches are packed, and the loss is scaled by
    us."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": clip_grad_norm,
        # The optimizer is plain torch AdamW, which gives the same update under every stage.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def wrap(
    model: nn.Module,
    *,
    stage: int,
    world_size: int,
    learning_rate: float,
    weight_decay: float,
    clip_grad_norm: float,
) -> Any:
    """A DeepSpeed engine around ``model`` with AdamW over its trainable parameters."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # Only shortens small all-reduces inside one host, and would compile for a minute at the first of them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        betas=ADAM_BETAS,
        weight_decay=weight_decay,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config=zero_config(stage=stage, world_size=world_size, clip_grad_norm=clip_grad_norm),
        dist_init_required=False,
    )
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Use ``value`` from the next update on."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


@contextmanager
def full_weights(engine: Any) -> Iterator[nn.Module]:
    """The model with whole parameters on every worker; all workers must enter (ZeRO-3 gathers)."""
    if engine.zero_optimization_stage() < 3:
        yield engine.module
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        yield engine.module
