"""Training in plain PyTorch, one document at a time: what any ZeRO stage on any workers must equal."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from casa_core.batch import PackedSequence, collate
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from casa_core.processing.processor import CasaProcessor
from pipelines.train.build import build_model
from pipelines.train.loader import SequenceReader
from pipelines.train.model_config import training_stage
from pipelines.train.settings import TrainJob


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights at the end, and each step's mean loss and gradient norm before clipping."""

    weights: dict[str, torch.Tensor]
    losses: list[float]
    grad_norms: list[float]


def train_plainly(
    job: TrainJob, steps: Sequence[Sequence[int]], factors: Sequence[float], *, shuffled: int | None = None
) -> Trained:
    """Train on these packed sequences, step by step, each at its factor on the peak learning rates.

    ``shuffled``: sum each step's documents in an order of this seed; only rounding can differ.
    """
    processor = CasaProcessor.from_pretrained(Path(job.pack) / "tokenizer")
    assert isinstance(processor, CasaProcessor)
    sources = {name: Path(path) for name, path in job.sources.items()}
    settings = job.settings
    reader = SequenceReader(Path(job.pack), sources, processor, images=settings.images)
    model = build_model(
        settings.model, processor, seed=settings.seed, images=settings.images, start=job.start
    )
    groups = parameter_groups(model, training_stage(settings.train))
    peaks = [group["lr"] for group in groups]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=settings.train.weight_decay)
    losses, norms = [], []
    for numbers, factor in zip(steps, factors, strict=True):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss, tokens = torch.zeros(()), 0
        documents = [document for number in numbers for document in _documents(reader[number])]
        if shuffled is not None:
            random.Random(shuffled).shuffle(documents)
        for document in documents:
            own, count = _loss_sum(model, document)
            loss, tokens = loss + own, tokens + count
        loss = loss / tokens
        optimizer.zero_grad()
        loss.backward()
        most = settings.train.clip_grad_norm or math.inf
        norms.append(float(torch.nn.utils.clip_grad_norm_(trainable, most)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return Trained({name: p.detach() for name, p in model.named_parameters()}, losses, norms)


def _documents(packed: PackedSequence) -> list[PackedSequence]:
    """Each document of a packed sequence alone."""
    ends = [*packed.document_starts[1:], len(packed.input_ids)]
    out = []
    for start, end in zip(packed.document_starts, ends, strict=True):
        own = [n for n, position in enumerate(packed.image_positions) if start <= position < end]
        out.append(
            replace(
                packed,
                input_ids=packed.input_ids[start:end],
                loss_mask=packed.loss_mask[start:end],
                document_starts=[0],
                image_positions=[packed.image_positions[n] - start for n in own],
                image_tokens=[packed.image_tokens[n] for n in own],
                image_grids=[packed.image_grids[n] for n in own],
                patches_PE=[packed.patches_PE[n] for n in own],
            )
        )
    return out


def _loss_sum(model: CasaForConditionalGeneration, document: PackedSequence) -> tuple[torch.Tensor, int]:
    """Summed loss of predicting each answer token from everything before it, and how many there are."""
    inputs: dict[str, Any] = {**collate([document]).inputs(), "loss_mask": None}
    logits_TV = model(**inputs).logits[0]
    answers = [index for index, trained in enumerate(document.loss_mask) if trained]
    labels = torch.tensor([document.input_ids[index] for index in answers])
    return cross_entropy(logits_TV[[index - 1 for index in answers]], labels, reduction="sum"), len(answers)
