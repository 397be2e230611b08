"""The DeepSpeed ZeRO engine around the model: its configuration, optimizer, learning rates, full weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from casa_core.backbones.tiny import ConvStem
from pipelines.recipe.model import Train
from pipelines.recipe.where import TrainWorkers
from pipelines.train.zero_sizes import ALLGATHER_BUCKET, LIVE_PARAMETERS, PERSISTENT, REDUCE_BUCKET


def zero_config(train: Train, placement: TrainWorkers, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Stage 0 shards nothing, 1 the optimizer's state, 2 gradients too, 3 parameters too. bf16 computes in
    bfloat16 and keeps master weights, both moments and accumulated gradients in float32.

    Batch sizes are nominal: batches are packed, :mod:`pipelines.train.step` scales the loss, and sets which
    forward of a step is the last one.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": train.clip_grad_norm,
        # The optimizer is plain torch AdamW, which gives the same update under every stage.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": placement.zero_stage,
            # ZeRO-3 gathers ahead in a stream of its own. The reductions of 1 and 2 stay in the backward's:
            # they wait for it anyway in this version of DeepSpeed.
            "overlap_comm": placement.zero_stage == 3,
            "contiguous_gradients": True,
            "reduce_bucket_size": REDUCE_BUCKET,
            "allgather_bucket_size": ALLGATHER_BUCKET,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
            "stage3_param_persistence_threshold": PERSISTENT,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if placement.offload != "none":
        config["zero_optimization"]["offload_optimizer"] = host
    if placement.offload == "parameters":
        config["zero_optimization"]["offload_param"] = host
    if train.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def wrap(
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    train: Train,
    placement: TrainWorkers,
    world_size: int,
) -> Any:
    """A DeepSpeed engine around ``model``, with AdamW over ``groups`` (Adam where the weight decay is 0).

    Args:
        model: Whole on every worker; ZeRO-3 shards it here.
        groups: From :func:`casa_core.param_groups.parameter_groups`: each with its peak learning rate.
        train: Precision, clipping and the optimizer's constants.
        placement: What is sharded, and what is kept in host memory.
        world_size: Number of workers.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import set_z3_leaf_modules

    # It only shortens small all-reduces inside one host, and compiles for a minute at the first of them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stems = [module for module in model.modules() if isinstance(module, ConvStem)]
    if placement.zero_stage == 3 and stems:
        # Its convolutions run once per picture size, and workers have different numbers of sizes: gathered as
        # one module, it takes the same collectives on every worker.
        set_z3_leaf_modules(model, [ConvStem])
        for stem in stems:
            stem.register_forward_pre_hook(_want_input_gradient)
    optimizer = torch.optim.AdamW(
        [{**group, "peak": group["lr"]} for group in groups],
        betas=(train.adam_betas[0], train.adam_betas[1]),
        weight_decay=train.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config=zero_config(train, placement, world_size),
        dist_init_required=False,
    )
    return engine


def _want_input_gradient(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: ZeRO-3 releases a module's parameters once its input's gradient is there; where the
    input needs none, that is before the module's backward has run."""
    patches_PE, *rest = inputs
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return (patches_PE.detach().requires_grad_(trained), *rest)


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Use ``factor`` times each group's peak from the next update on; returns group kind → learning rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["kind"]: group["lr"] for group in engine.optimizer.param_groups}


@contextmanager
def full_weights(engine: Any) -> Iterator[nn.Module]:
    """The model with whole parameters on every worker; all workers must enter, because ZeRO-3 gathers."""
    if engine.zero_optimization_stage() < 3:
        yield engine.module
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        yield engine.module
