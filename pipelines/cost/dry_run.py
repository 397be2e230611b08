"""Dry run: two steps of a recipe's real configuration on random data, before 64 GPUs are spent on it.

Budgets, resolutions, parameter groups, schedule, accumulation, precision and ZeRO are the recipe's, and the
step is the one that training takes, for one worker's share. ``small`` has the same layers at a width that
two CPU cores can train (:func:`pipelines.train.build.model_config`). Without a GPU it computes in float32:
few CPUs multiply in bfloat16, and the others take five times as long.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import describe, parameter_groups
from pipelines.cost.synthetic import SequenceShape, forwards_of, random_batch, shapes_of
from pipelines.recipe.model import Recipe
from pipelines.train import zero
from pipelines.train.loader import MicroBatch
from pipelines.train.loop import learning_rate_factor, peak_memory_gib, take_step
from pipelines.train.loss_guard import LossGuard
from pipelines.train.model_config import Scale, model_config, training_stage

SMALL_VOCABULARY = 512
STEPS = 2


@dataclass(frozen=True, slots=True)
class DryStep:
    """The result of one step.

    Attributes:
        kind: ``image`` or ``video``.
        forwards: Number accumulated in the step.
        text_tokens, image_tokens: One worker's.
        loss, grad_norm: As in training.
        rates: ``new`` and ``existing`` parameters → learning rate.
        seconds: Duration of the step, without making its data.
    """

    kind: str
    forwards: int
    text_tokens: int
    image_tokens: int
    loss: float
    grad_norm: float
    rates: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        trains: Table of the parameters that train, and their peak learning rates.
        parameters: Number of the model's parameters.
        schedule: Step, from 1 → learning rates.
        steps: The steps that were taken.
        peak_gib: Peak memory of the GPU's tensors, or of the process, GiB.
    """

    trains: str
    parameters: int
    schedule: dict[int, dict[str, float]]
    steps: list[DryStep]
    peak_gib: float


def dry_run(recipe: Recipe, scale: Scale = "small") -> Iterator[DryStep | DryRun]:
    """Take the steps; yields each, then the result of the whole run.

    Raises:
        TrainingError: If a loss or gradient is not finite.
        ConfigError: If nothing would train.
    """
    with _alone():
        model = _model(recipe, scale)
        stage = training_stage(recipe.train)
        trains, parameters = describe(model, stage), sum(p.numel() for p in model.parameters())
        if recipe.where.train.gradient_checkpointing:
            model.recompute_activations()
        train = recipe.train
        if not torch.cuda.is_available():
            train = train.model_copy(update={"precision": "fp32"})
        engine = zero.wrap(model, parameter_groups(model, stage), train, recipe.where.train, world_size=1)
        taken = []
        for number, (kind, shape) in enumerate(_kinds(recipe)):
            taken.append(_step(engine, recipe, number, kind, shape, model.config.text_config.vocab_size))
            yield taken[-1]
        yield DryRun(trains, parameters, schedule_points(recipe), taken, peak_memory_gib())


def schedule_points(recipe: Recipe) -> dict[int, dict[str, float]]:
    """Learning rates at the first step, the end of the warm-up, the middle, the start of the decay and the
    last step."""
    train = recipe.train
    stage = training_stage(train)
    steps = (1, train.warmup_steps, train.steps // 2, train.steps - train.decay_steps, train.steps)
    return {
        step: {
            "new": stage.new_learning_rate * factor,
            "existing": stage.existing_learning_rate * factor,
        }
        for step in dict.fromkeys(max(step, 1) for step in steps)
        for factor in [learning_rate_factor(train, step - 1)]
    }


def _step(
    engine: object, recipe: Recipe, number: int, kind: str, shape: SequenceShape, vocab_size: int
) -> DryStep:
    batches = _batches(recipe, kind, shape, vocab_size, torch.Generator().manual_seed(recipe.seed + number))
    began = time.perf_counter()
    taken = take_step(
        engine,
        batches,
        number=number + 1,
        kind=kind,
        factor=learning_rate_factor(recipe.train, number),
        guard=LossGuard(0, 1),
        world_size=1,
        sources=("random",),
        stage=training_stage(recipe.train),
    )
    return DryStep(
        kind,
        len(batches),
        taken.totals.text_tokens,
        taken.totals.image_tokens,
        taken.totals.loss,
        taken.norm,
        taken.rates,
        time.perf_counter() - began,
    )


def _batches(
    recipe: Recipe, kind: str, shape: SequenceShape, vocab_size: int, generator: torch.Generator
) -> list[MicroBatch]:
    """One worker's share of a step, one batch per forward."""
    forwards = forwards_of(recipe, kind, recipe.where.train.fewest)
    return [random_batch(shape, sequences, vocab_size, generator) for sequences in forwards]


def _kinds(recipe: Recipe) -> list[tuple[str, SequenceShape]]:
    """Kind and shape of each step: one step of each kind where there are two kinds."""
    kinds = list(shapes_of(recipe).items())
    return (kinds * STEPS)[:STEPS]


def _model(recipe: Recipe, scale: Scale) -> CasaForConditionalGeneration:
    torch.manual_seed(recipe.seed)
    config = model_config(
        recipe.model, vocab_size=SMALL_VOCABULARY, pad_token_id=0, eos_token_id=1, scale=scale
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = CasaForConditionalGeneration(config)
    model.initialize_fusion()
    return model.train()


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process alone; an existing one is used."""
    if dist.is_initialized():
        yield
        return
    given = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        meeting = f"file://{Path(folder) / 'store'}"
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            for name, value in given.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
