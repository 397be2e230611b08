"""One training step, without Ray: forward, loss over the *global* number of answer tokens, backward,
update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from casa_core.batch import PackedBatch


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Sums over all workers of one step.

    Attributes:
        loss: Mean loss of an answer token.
        text_tokens, image_tokens, trained_tokens: Tokens in the step.
    """

    loss: float
    text_tokens: int
    image_tokens: int
    trained_tokens: int


def train_step(engine: Any, batch: PackedBatch, world_size: int) -> StepTotals:
    """Run one step on a DeepSpeed engine.

    The loss is summed over every worker's answer tokens and divided by their global count, so that a long
    answer weighs the same wherever it lands. DeepSpeed averages gradients over workers, hence the factor
    ``world_size``.

    Args:
        engine: From ``deepspeed.initialize``.
        batch: This worker's part.
        world_size: Number of workers.
    """
    counts = torch.tensor(
        [batch.text_tokens, batch.image_tokens, batch.trained_tokens],
        dtype=torch.float64,
        device=engine.device,
    )
    _sum_over_workers(counts, world_size)
    text_tokens, image_tokens, trained_tokens = (int(value) for value in counts.tolist())
    output = engine(**batch.inputs())
    engine.backward(output.loss_sum * (world_size / max(trained_tokens, 1)))
    engine.step()
    loss_sum = output.loss_sum.detach().double().reshape(1)
    _sum_over_workers(loss_sum, world_size)
    return StepTotals(loss_sum.item() / max(trained_tokens, 1), text_tokens, image_tokens, trained_tokens)


def _sum_over_workers(values: torch.Tensor, world_size: int) -> None:
    if world_size > 1:
        dist.all_reduce(values)
