"""One training step: forwards, loss over the answer tokens of all workers, backwards, update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipelines.train.loader import Document, MicroBatch

COUNTS = ("text_tokens", "image_tokens", "trained_tokens")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Losses and counts of one step's forwards.

    Attributes:
        loss: Mean loss per answer token, nats, over all workers.
        text_tokens, image_tokens, trained_tokens: Tokens in the step, over all workers.
        flops: The model's operations for them, over all workers.
        source_losses: Source → mean loss per answer token, for the sources in the step.
        documents: This worker's documents with their mean losses.
    """

    loss: float
    text_tokens: int
    image_tokens: int
    trained_tokens: int
    flops: float
    source_losses: dict[str, float]
    documents: list[tuple[Document, float]]


def accumulate_gradients(
    engine: Any,
    batches: Sequence[MicroBatch],
    world_size: int,
    sources: Sequence[str] = (),
    flops: float = 0.0,
) -> StepTotals:
    """Forward and backward of every micro-batch of a step; updates nothing.

    The loss is summed over the answer tokens of all workers and micro-batches and divided by their count, so
    that an answer token weighs the same in any micro-batch. DeepSpeed averages gradients over workers, hence
    the factor ``world_size``.

    Args:
        engine: From :func:`pipelines.train.zero.wrap`.
        batches: This worker's part of the step; equally many on every worker.
        world_size: Number of workers.
        sources: Names of the sources that get a loss of their own, in an order that all workers share.
        flops: The model's operations for this worker's part.
    """
    counted = [sum(getattr(micro.batch, name) for micro in batches) for name in COUNTS]
    counts = torch.tensor([*counted, flops], dtype=torch.float64, device=engine.device)
    _sum_over_workers(counts, world_size)
    text_tokens, image_tokens, trained_tokens = (int(value) for value in counts[:-1].tolist())
    token_losses: list[torch.Tensor] = []
    for number, micro in enumerate(batches, start=1):
        engine.set_gradient_accumulation_boundary(number == len(batches))
        output = engine(**micro.batch.to(engine.device).inputs())
        engine.backward(output.loss_sum * (world_size / max(trained_tokens, 1)))
        token_losses.append(output.token_losses_A)
        del output  # its logits: up to a gigabyte that the next forward needs
    documents = list(_documents(batches, torch.cat(token_losses).double().cpu()))
    sums = _sums(documents, sources).to(engine.device)
    _sum_over_workers(sums, world_size)
    loss_sum, *rest = sums.tolist()
    by_source = zip(sources, rest[: len(sources)], rest[len(sources) :], strict=True)
    return StepTotals(
        loss_sum / max(trained_tokens, 1),
        text_tokens,
        image_tokens,
        trained_tokens,
        float(counts[-1]),
        {source: loss / count for source, loss, count in by_source if count},
        [(document, loss / document.trained_tokens) for document, loss in documents],
    )


def measure_loss(engine: Any, batches: Iterable[MicroBatch], world_size: int) -> float:
    """Mean loss per answer token, nats, without training; every worker calls it with equally many batches."""
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for micro in batches:
            output = engine(**micro.batch.to(engine.device).inputs())
            sums += torch.stack([output.loss_sum.double(), sums.new_tensor(micro.batch.trained_tokens)])
    engine.train()
    _sum_over_workers(sums, world_size)
    return float(sums[0] / sums[1].clamp(min=1))


def update(engine: Any) -> float:
    """Clip the gradient and take the optimizer's step; returns the gradient's norm before clipping."""
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed clips without recording the norm
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def _documents(batches: Sequence[MicroBatch], losses_A: torch.Tensor) -> Iterator[tuple[Document, float]]:
    """Documents that have answers, with their summed losses; ``losses_A`` is in the documents' order."""
    start = 0
    for document in (document for micro in batches for document in micro.documents):
        if document.trained_tokens:
            yield document, float(losses_A[start : start + document.trained_tokens].sum())
            start += document.trained_tokens
    assert start == len(losses_A) or not any(micro.documents for micro in batches), "losses are of documents"


def _sums(documents: Sequence[tuple[Document, float]], sources: Sequence[str]) -> torch.Tensor:
    """1-D: the loss, then each source's loss, then each source's number of answer tokens."""
    losses, tokens = dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 0)
    for document, loss in documents:
        if document.source in losses:
            losses[document.source] += loss
            tokens[document.source] += document.trained_tokens
    total = sum(loss for _, loss in documents)
    return torch.tensor([total, *losses.values(), *tokens.values()], dtype=torch.float64)


def _sum_over_workers(values: torch.Tensor, world_size: int) -> None:
    if world_size > 1:
        dist.all_reduce(values)
