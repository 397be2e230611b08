"""One training step, without Ray: forwards, loss over the *global* number of answer tokens, backwards, one
update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipelines.train.loader import MicroBatch


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


def accumulate_gradients(engine: Any, batches: Sequence[MicroBatch], world_size: int) -> StepTotals:
    """Forward and backward of every micro-batch of a step; nothing is updated yet.

    The loss is summed over the answer tokens of all workers and micro-batches and divided by their count, so
    that a long answer weighs the same wherever it lands. DeepSpeed averages gradients over workers, hence
    the factor ``world_size``.

    Args:
        engine: From :func:`pipelines.train.zero.wrap`.
        batches: This worker's part of the step; as many as every other worker has.
        world_size: Number of workers.
    """
    counts = torch.tensor(
        [
            sum(getattr(micro.batch, name) for micro in batches)
            for name in ("text_tokens", "image_tokens", "trained_tokens")
        ],
        dtype=torch.float64,
        device=engine.device,
    )
    _sum_over_workers(counts, world_size)
    text_tokens, image_tokens, trained_tokens = (int(value) for value in counts.tolist())
    loss_sum = torch.zeros(1, dtype=torch.float64, device=engine.device)
    for number, micro in enumerate(batches, start=1):
        engine.set_gradient_accumulation_boundary(number == len(batches))
        output = engine(**micro.batch.to(engine.device).inputs())
        engine.backward(output.loss_sum * (world_size / max(trained_tokens, 1)))
        loss_sum += output.loss_sum.detach()
    _sum_over_workers(loss_sum, world_size)
    return StepTotals(loss_sum.item() / max(trained_tokens, 1), text_tokens, image_tokens, trained_tokens)


def update(engine: Any) -> float:
    """Clip, and take the optimizer's step; returns the gradient's norm before clipping."""
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed clips, but does not tell
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def _sum_over_workers(values: torch.Tensor, world_size: int) -> None:
    if world_size > 1:
        dist.all_reduce(values)
