"""DeepSpeed ZeRO around the model: which state is sharded, and how full weights come back out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from casa_core.backbones.tiny import ConvStem

REDUCE_BUCKET = ALLGATHER_BUCKET = 50_000_000
"""Elements of a communication bucket; :func:`zero_config` sets it, as all of these."""
LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO-3 holds whole at once: prefetched, being used, soon to be used again."""
PERSISTENT = 100_000
"""ZeRO-3 keeps a tensor of fewer elements whole on every worker."""
Precision = Literal["fp32", "bf16"]
Offload = Literal["none", "optimizer", "parameters"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What forwards compute in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroSettings:
    """How the engine computes and what it shards.

    Attributes:
        stage: 0 shards nothing, 1 the optimizer's state, 2 gradients too, 3 parameters too.
        world_size: Number of workers.
        precision: ``bf16`` computes in bfloat16 and keeps master weights, both moments and accumulated
            gradients in float32.
        offload: What lives in host memory: the optimizer's state and its update, or parameters as well.
        betas, weight_decay: AdamW's (Adam's where the decay is 0).
        clip_grad_norm: Largest norm of the whole gradient.
    """

    stage: int
    world_size: int
    precision: Precision = "fp32"
    offload: Offload = "none"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip_grad_norm: float = 1.0


def zero_config(settings: ZeroSettings) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Batch sizes are nominal: batches are packed, the loss is scaled by us, and a step tells the engine itself
    which of its forwards is the last one.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": settings.world_size,
        "gradient_clipping": settings.clip_grad_norm,
        # The optimizer is plain torch AdamW, which gives the same update under every stage.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": settings.stage,
            # ZeRO-3 gathers ahead in a stream of its own. The reductions of 1 and 2 stay in the backward's:
            # they wait for it anyway in this version of DeepSpeed.
            "overlap_comm": settings.stage == 3,
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
    if settings.offload != "none":
        config["zero_optimization"]["offload_optimizer"] = host
    if settings.offload == "parameters":
        config["zero_optimization"]["offload_param"] = host
    if settings.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def wrap(model: nn.Module, groups: Sequence[Mapping[str, Any]], settings: ZeroSettings) -> Any:
    """A DeepSpeed engine around ``model``, with AdamW over ``groups``.

    Args:
        model: Whole on every worker; ZeRO-3 shards it here.
        groups: From :func:`casa_core.param_groups.parameter_groups`: each with its peak learning rate.
        settings: What is sharded, and the optimizer's constants.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import set_z3_leaf_modules

    # Only shortens small all-reduces inside one host, and would compile for a minute at the first of them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stems = [module for module in model.modules() if isinstance(module, ConvStem)]
    if settings.stage == 3 and stems:
        # Its convolutions run once for each size of picture, which workers have differently many of: gathered
        # as one module, it asks every worker for the same collectives.
        set_z3_leaf_modules(model, [ConvStem])
        for stem in stems:
            stem.register_forward_pre_hook(_want_input_gradient)
    optimizer = torch.optim.AdamW(
        [{**group, "peak": group["lr"]} for group in groups],
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config=zero_config(settings),
        dist_init_required=False,
    )
    return engine


def _want_input_gradient(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """ZeRO-3 lets go of a module's parameters once its input's gradient is there: where the input wants none,
    that is before its backward has run."""
    patches_PE, *rest = inputs
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return (patches_PE.detach().requires_grad_(trained), *rest)


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Use ``factor`` times each group's own peak from the next update on; the rates by the groups' kind."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["kind"]: group["lr"] for group in engine.optimizer.param_groups}


@contextmanager
def full_weights(engine: Any) -> Iterator[nn.Module]:
    """The model with whole parameters on every worker; all workers must enter (ZeRO-3 gathers)."""
    if engine.zero_optimization_stage() < 3:
        yield engine.module
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        yield engine.module
