"""Two steps of a recipe's real configuration on random data: before 64 GPUs are spent on it.

Budgets, resolutions, parameter groups, schedule, accumulation, precision and ZeRO are the recipe's, and the
step is the one that training takes, for one worker's share. ``small`` puts the same layers at a width that
two CPU cores can train (:func:`pipelines.train.build.model_config`). Without a GPU it computes in float32,
whatever the recipe says: few CPUs multiply in bfloat16, and the others take five times as long.
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
from pipelines.cost.synthetic import SequenceShape, random_batch, shapes_of
from pipelines.recipe.model import Recipe
from pipelines.train import zero
from pipelines.train.build import Scale, model_config, training_stage
from pipelines.train.loader import MicroBatch, Share
from pipelines.train.loop import peak_memory_gib, schedule_factor, take_step
from pipelines.train.loss_guard import Guard

SMALL_VOCABULARY = 512
STEPS = 2


@dataclass(frozen=True, slots=True)
class DryStep:
    """What one step did.

    Attributes:
        kind: ``image`` or ``video``.
        forwards: Accumulated in the step.
        text_tokens, image_tokens: Of one worker.
        loss, grad_norm: As in training.
        rates: Learning rate of new and existing parameters.
        seconds: Of the step, data not counted.
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
    """What a dry run found.

    Attributes:
        trains: A table of what trains, how fast.
        parameters: Of the model.
        schedule: Step, from 1 → learning rates.
        steps: The steps that were taken.
        peak_gib: Memory of the GPU's tensors, or of the process.
    """

    trains: str
    parameters: int
    schedule: dict[int, dict[str, float]]
    steps: list[DryStep]
    peak_gib: float


def dry_run(recipe: Recipe, scale: Scale = "small") -> Iterator[DryStep | DryRun]:
    """Take the steps; yields each, and at last the whole.

    Raises:
        TrainingError: If a loss or gradient is no number.
        ConfigError: If nothing would train.
    """
    with _alone():
        model = _model(recipe, scale)
        stage = training_stage(recipe.train.model_dump())
        trains, parameters = describe(model, stage), sum(p.numel() for p in model.parameters())
        engine = zero.wrap(_prepared(model, recipe), parameter_groups(model, stage), _settings(recipe))
        taken = []
        for number, (kind, shape) in enumerate(_kinds(recipe)):
            taken.append(_step(engine, recipe, number, kind, shape, model.config.text_config.vocab_size))
            yield taken[-1]
        yield DryRun(trains, parameters, schedule_points(recipe), taken, peak_memory_gib())


def schedule_points(recipe: Recipe) -> dict[int, dict[str, float]]:
    """Learning rates at the first step, the end of the warm-up, the middle, the start of the decay and the
    last step."""
    train = recipe.train
    stage = training_stage(train.model_dump())
    steps = (1, train.warmup_steps, train.steps // 2, train.steps - train.decay_steps, train.steps)
    return {
        step: {
            "new": stage.new_learning_rate * factor,
            "existing": stage.existing_learning_rate * factor,
        }
        for step in dict.fromkeys(max(step, 1) for step in steps)
        for factor in [schedule_factor(train.model_dump(), step - 1)]
    }


def _step(
    engine: object, recipe: Recipe, number: int, kind: str, shape: SequenceShape, vocab_size: int
) -> DryStep:
    batches = _batches(recipe, kind, shape, vocab_size, torch.Generator().manual_seed(recipe.seed + number))
    began = time.perf_counter()
    train = recipe.train.model_dump()
    taken = take_step(
        engine,
        batches,
        number=number + 1,
        kind=kind,
        factor=schedule_factor(train, number),
        guard=Guard(0, 1),
        world_size=1,
        sources=("random",),
        stage=training_stage(train),
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
    """One worker's share of a step, as it would accumulate it."""
    train, placement = recipe.train, recipe.where.train
    batch = train.sequences_per_step if kind == "image" else train.videos_per_step
    share = Share(rank=0, world_size=placement.fewest, sequences_per_forward=placement.sequences_per_forward)
    return [random_batch(shape, len(own), vocab_size, generator) for own in share.of(range(batch))]


def _kinds(recipe: Recipe) -> list[tuple[str, SequenceShape]]:
    """Two steps: one of each kind where there are two."""
    kinds = list(shapes_of(recipe).items())
    return (kinds * STEPS)[:STEPS]


def _model(recipe: Recipe, scale: Scale) -> CasaForConditionalGeneration:
    torch.manual_seed(recipe.seed)
    spec = recipe.model.model_dump()
    config = model_config(spec, vocab_size=SMALL_VOCABULARY, pad_token_id=0, eos_token_id=1, scale=scale)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = CasaForConditionalGeneration(config)
    model.initialize_fusion()
    return model.train()


def _prepared(model: CasaForConditionalGeneration, recipe: Recipe) -> CasaForConditionalGeneration:
    if recipe.where.train.gradient_checkpointing:
        model.recompute_activations()
    return model


def _settings(recipe: Recipe) -> zero.ZeroSettings:
    train, placement = recipe.train, recipe.where.train
    first, second = train.adam_betas
    return zero.ZeroSettings(
        stage=placement.zero_stage,
        world_size=1,
        precision=train.precision if torch.cuda.is_available() else "fp32",
        offload=placement.offload,
        betas=(first, second),
        weight_decay=train.weight_decay,
        clip_grad_norm=train.clip_grad_norm,
    )


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process; one that is there already is used."""
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
