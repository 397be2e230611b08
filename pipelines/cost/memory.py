"""Memory of the training state on one GPU: parameters, gradients, optimizer, buffers, under each ZeRO stage.

It follows from the number of parameters. Memory of activations is in :mod:`pipelines.cost.activations`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from casa_core.config import CasaConfig, TrainingStage
from pipelines.cost.remembered import remembered
from pipelines.train.zero_sizes import LIVE_PARAMETERS, PERSISTENT, REDUCE_BUCKET

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        parameters: Weights that forwards read.
        gradients: Gradients that are kept until the update.
        optimizer: float32 master weights and Adam's two moments.
        activations: What one forward keeps for its backward, and a layer while it is recomputed.
        buffers: DeepSpeed's communication buffers.
        host: Offloaded state, in host memory; not part of the total.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "host")


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Numbers of parameter elements.

    Attributes:
        every: All of the model's.
        trained: Those that the stage trains.
        small: Those in tensors so small that ZeRO-3 keeps them whole on every worker.
    """

    every: int
    trained: int
    small: int


def count_parameters(config: CasaConfig, stage: TrainingStage) -> ParameterCounts:
    """Count the parameters of a model of that configuration, without allocating them."""
    settings = [config.to_json_string(), repr(stage)]
    return ParameterCounts(*map(int, remembered("parameters", settings, lambda: _count(config, stage))))


def _count(config: CasaConfig, stage: TrainingStage) -> list[int]:
    """All parameters, those trained, those of small tensors."""
    from casa_core.model import CasaForConditionalGeneration  # late, as the probes' import of it
    from casa_core.param_groups import parameter_groups

    with torch.device("meta"):
        model = CasaForConditionalGeneration(config)
    groups = parameter_groups(model, stage)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return [
        sum(sizes),
        sum(parameter.numel() for group in groups for parameter in group["params"]),
        sum(size for size in sizes if size < PERSISTENT),
    ]


def state_memory(
    counts: ParameterCounts,
    *,
    zero_stage: int,
    workers: int,
    precision: str = "fp32",
    offload: str = "none",
    accumulates: bool = False,
) -> Memory:
    """Memory of one GPU without activations.

    Args:
        counts: The model's parameters.
        zero_stage, workers, precision, offload: As in the recipe.
        accumulates: Whether a step accumulates gradients over several forwards.
    """
    size = 2 if precision == "bf16" else 4
    share = -(-counts.trained // workers)
    parameters = size * counts.every
    # DeepSpeed keeps a float32 copy of what it updates, also where the weights are float32 themselves.
    optimizer, gradients = 12 * share, 4 * share
    buffers = size * REDUCE_BUCKET if workers > 1 else 0
    if zero_stage == 0:
        optimizer, gradients, buffers = 8 * counts.trained, 4 * counts.trained, 0
    elif zero_stage == 1 and precision == "bf16":
        # All gradients are accumulated in float32, beside those of the backward.
        gradients = (4 + size) * counts.trained
    elif zero_stage == 1 and accumulates:
        gradients = 4 * counts.trained
    elif zero_stage == 3 and workers > 1:
        parameters = size * (-(-counts.every // workers) + counts.small)
        buffers += size * min(LIVE_PARAMETERS, counts.every)
    host = 0
    if offload != "none":
        host, optimizer, gradients = optimizer + gradients, 0, 0
        buffers += size * min(REDUCE_BUCKET, counts.trained)
    if offload == "parameters":
        host, parameters = host + parameters, size * counts.small
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=0,
        buffers=buffers,
        host=host,
    )
