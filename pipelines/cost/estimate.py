"""Estimates a recipe's training: memory of one GPU by part, whether it fits, operations and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError
from casa_core.flops import step_flops
from casa_core.hardware import Gpu
from pipelines.cost.activations import ActivationModel
from pipelines.cost.memory import Memory, ParameterCounts, count_parameters, state_memory
from pipelines.cost.synthetic import SequenceShape, forwards_of, shapes_of
from pipelines.recipe.model import Model, Recipe, Train
from pipelines.recipe.where import TrainWorkers
from pipelines.train.model_config import model_config, training_stage

MFU = 0.14
MFU_RANGE = (0.10, 0.35)
"""Share of a GPU's peak rate. The paper's days (B.1: three for 100,000 steps from Helium, two for Qwen's
image stage, one for its video stage, each on 64 H100) come to 0.10 to 0.14 with full sequences; 0.35 is what
well-tuned training of language models of this size reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainEstimate:
    """Cost of a run's training.

    Attributes:
        counts: The model's parameters.
        memory: Memory of one GPU, at the kind of step that needs most.
        gpu: The GPU that it must fit.
        workers: Number of GPUs.
        forwards: Largest number of forwards that each accumulates in a step.
        tokens: Kind → text and image tokens of a step, over all workers, where sequences are full.
        flops: Operations per step, averaged over the kinds, over all workers.
        steps: Steps of the run.
        checkpoint_bytes: Size of one checkpoint.
    """

    counts: ParameterCounts
    memory: Memory
    gpu: Gpu
    workers: int
    forwards: int
    tokens: dict[str, tuple[int, int]]
    flops: float
    steps: int
    checkpoint_bytes: int

    @property
    def fits(self) -> bool:
        """Whether one GPU holds it, beside what the driver and fragmentation take."""
        return self.memory.total <= self.gpu.usable_bytes

    def seconds(self, mfu: float = MFU) -> float:
        """Duration of the whole run, at a share of the GPU's peak rate."""
        return self.steps * self.flops / (self.workers * self.gpu.bf16_tflops * 1e12 * mfu)


def estimate(recipe: Recipe, gpu: Gpu, workers: int | None = None) -> TrainEstimate:
    """Estimate the recipe's train stage.

    Args:
        recipe: The run.
        gpu: Each worker's GPU.
        workers: Number of workers instead of the recipe's, whose range counts as its fewest.

    Raises:
        ConfigError: For a model that cannot be built.
    """
    train, placement = recipe.train, recipe.where.train
    workers = workers or placement.fewest
    stage = training_stage(train)
    config = full_config(recipe.model)
    counts = count_parameters(config, stage)
    shapes = shapes_of(recipe)
    forwards = {kind: forwards_of(recipe, kind, workers) for kind in shapes}
    state = state_memory(
        counts,
        zero_stage=placement.zero_stage,
        workers=workers,
        precision=train.precision,
        offload=placement.offload,
        accumulates=any(len(own) > 1 for own in forwards.values()),
    )
    kept = max(_activations(recipe, placement, shape, max(forwards[kind])) for kind, shape in shapes.items())
    batch = train.batch_sizes
    ratio = dict(zip(batch, train.image_video_ratio, strict=True))
    flops = sum(
        step_flops(config, stage, shape.load) * batch[kind] * ratio[kind] for kind, shape in shapes.items()
    )
    return TrainEstimate(
        counts=counts,
        memory=replace(state, activations=kept),
        gpu=gpu,
        workers=workers,
        forwards=max(map(len, forwards.values())),
        tokens={
            kind: (shape.text_tokens * batch[kind], shape.image_tokens * batch[kind])
            for kind, shape in shapes.items()
        },
        flops=flops / sum(train.image_video_ratio),
        steps=train.steps,
        checkpoint_bytes=12 * counts.trained,
    )


def check_fits(found: TrainEstimate, recipe: Recipe) -> None:
    """Refuse a run that does not fit its GPUs, before any is used.

    Raises:
        ConfigError: Names the smallest change that makes it fit, if there is one.
    """
    if found.fits:
        return
    total, limit = found.memory.total / 2**30, found.gpu.usable_bytes / 2**30
    raise ConfigError(
        f"{recipe.name} needs about {total:.0f} GiB per GPU, and a {found.gpu.name} has {limit:.0f}.",
        f"Parts, GiB: {', '.join(f'{name} {size / 2**30:.1f}' for name, size in _largest(found.memory))}.",
        _remedy(found, recipe),
    )


def _largest(memory: Memory) -> list[tuple[str, int]]:
    parts = {
        name: getattr(memory, name)
        for name in ("activations", "parameters", "optimizer", "gradients", "buffers")
    }
    return sorted(parts.items(), key=lambda part: -part[1])


def _remedy(found: TrainEstimate, recipe: Recipe) -> str:
    """The settings that make it fit and slow training least, as a sentence."""
    placement = recipe.where.train
    changes: dict[str, object] = {}
    for name, value in (
        ("sequences_per_forward", 1),
        ("zero_stage", max(placement.zero_stage, 2)),
        ("gradient_checkpointing", True),
        ("zero_stage", 3),
        ("offload", "optimizer"),
    ):
        if getattr(placement, name) != value:
            changes[name] = value
            changed = placement.model_copy(update=changes)
            where = recipe.where.model_copy(update={"train": changed})
            again = estimate(recipe.model_copy(update={"where": where}), found.gpu, found.workers)
            if again.fits:
                settings = " ".join(
                    f"--set where.train.{key}={_yaml(value)}" for key, value in changes.items()
                )
                return f"`{settings}` makes it about {again.memory.total / 2**30:.0f} GiB."
    return "Lower pack.image_tokens or pack.text_tokens, or take a larger GPU."


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def full_config(model: Model) -> CasaConfig:
    """The configuration of a recipe's model at its real size.

    Weights in a folder have the sizes of their ``config.json``; others those of the published backbone, with
    a vocabulary of our tokenizers' size.
    """
    config = model_config(model, vocab_size=512, pad_token_id=0, eos_token_id=1)
    weights = model.weights
    if weights is None:
        return config
    if _is_folder(weights.checkpoint):
        return CasaConfig.from_pretrained(weights.checkpoint)
    if not any(map(_is_folder, (weights.language_model, weights.vision_tower))):
        return config
    from casa_core.weights.from_backbone import read_text_config, read_tower_config

    text, tower = config.text_config, config.vision_config
    if _is_folder(weights.language_model):
        text = read_text_config(weights.language_model)
    if _is_folder(weights.vision_tower):
        tower = read_tower_config(weights.vision_tower)
    elif isinstance(text, Qwen2_5_VLTextConfig) and _is_folder(weights.language_model):
        tower = read_tower_config(weights.language_model)
    return CasaConfig(text_config=text, vision_config=tower, fusion=config.fusion_settings)


def _is_folder(source: str | None) -> TypeGuard[str]:
    return source is not None and Path(source).is_dir()


def _activations(recipe: Recipe, placement: TrainWorkers, shape: SequenceShape, sequences: int) -> int:
    """Bytes that one forward keeps, with a recomputed layer if there is any, and the logits' gradient."""
    config, train = full_config(recipe.model), recipe.train
    sections = recipe.model.model_dump_json(), train.model_dump_json()
    kept = _model(*sections, placement.gradient_checkpointing)
    size = 2 if train.precision == "bf16" else 4
    logits = shape.trained_tokens * config.text_config.vocab_size * (4 + size)
    again = 0
    if placement.gradient_checkpointing:
        whole = _model(*sections, False)
        layers = config.text_config.num_hidden_layers + config.vision_config.depth
        again = whole(config, shape) // layers
    return sequences * (kept(config, shape) + logits + again)


@lru_cache(maxsize=4)
def _model(model: str, train: str, checkpointing: bool) -> ActivationModel:
    """Fitted once for all budgets and workers of a recipe; sections are JSON, because lists have no hash."""
    config, settings = full_config(Model.model_validate_json(model)), Train.model_validate_json(train)
    return ActivationModel(config, training_stage(settings), settings.precision, checkpointing)
