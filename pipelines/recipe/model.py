"""The recipe: one validated object for a whole run.

Everything but ``where`` decides the result and is fingerprinted.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from casa_core.fusion.config import (
    FusionInit,
    FusionKind,
    Gate,
    ImageNorm,
    Placement,
    Positions,
    TextNorm,
    fusion_config,
)
from infra.endpoint_settings import Access, Limits
from pipelines.recipe.data import Data
from pipelines.recipe.fields import Count, Index, ModelName, NonNegative, Positive, Section
from pipelines.recipe.pack import Pack
from pipelines.recipe.sweep import Sweep
from pipelines.recipe.where import Where

Beta = Annotated[float, Field(ge=0, lt=1)]
LayerRange = Annotated[str, Field(pattern=r"^(first|first_and_last):[1-9][0-9]*$")]


class Fusion(Section):
    """How images enter the language model; ``casa_core.fusion.config.FusionConfig`` explains each setting."""

    kind: FusionKind = Field(
        default="cross_attention",
        description="Text attends to images (CA), to its window's text too (CASA), or images are inserted.",
    )
    placement: Placement = Field(
        default="parallel", description="Where the layer stands beside self-attention; replace is for casa."
    )
    layers: Literal["auto", "all"] | Count | Annotated[list[Index], Field(min_length=1)] | LayerRange = Field(
        default="auto",
        description="Decoder layers that carry it: all, every n-th, first:n, first_and_last:n, or a list.",
    )
    shared_projections: bool = Field(
        default=False, description="Use self-attention's projections: no new weights."
    )
    gate: Gate = Field(default="none", description="What multiplies the layer's output.")
    image_ffn: bool = Field(
        default=False, description="Send image tokens through the blocks' feed-forward networks too."
    )
    image_norm: ImageNorm = Field(
        default="block_input_norm", description="What normalises image tokens before keys and values."
    )
    text_norm: TextNorm = Field(
        default="block_input_norm", description="What normalises text before the layer's projections."
    )
    positions: Positions = Field(default="window", description="RoPE positions inside the layer.")
    qformer_queries: Count = Field(default=64, description="Tokens an image is compressed to (qformer).")
    qformer_depth: Count = Field(default=1, description="Transformer blocks of the Q-Former.")
    init: FusionInit = Field(
        default="self_attention",
        description="Start of the new layers: a copy of self-attention, or the same adding 0.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fusion_config(self.model_dump())
        return self


class BpeTraining(Section):
    """A byte-level BPE tokenizer trained on the run's own texts."""

    vocab_size: Annotated[int, Field(ge=300)] = Field(
        default=512, description="Tokens in all; 256 bytes and the special tokens are always among them."
    )


class Tokenizer(Section):
    """Where the tokenizer comes from: trained on the run's own texts, or brought along."""

    train_bpe: BpeTraining | None = Field(default=None, description="Train it on the run's own texts.")
    path: str | None = Field(
        default=None, description="Folder of a tokenizer, or the name of a repository on the hub."
    )
    revision: str | None = Field(
        default=None, description="Commit of that repository; without it the newest is taken."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.train_bpe is None) == (self.path is None):
            raise ValueError("expected exactly one of `train_bpe` (train one) and `path` (bring one along)")
        if self.revision is not None and self.path is None:
            raise ValueError("revision is a commit of a repository that `path` names; remove it")
        return self


class Weights(Section):
    """What training starts from: published parts, a checkpoint, or the end of an earlier recipe."""

    language_model: str | None = Field(
        default=None, description="Published language model: a folder, or a repository on the hub."
    )
    revision: str | None = Field(default=None, description="Commit of that repository.")
    vision_tower: str | None = Field(
        default=None, description="Where the vision tower comes from; otherwise from the language model's."
    )
    vision_revision: str | None = Field(default=None, description="Commit of that repository.")
    checkpoint: str | None = Field(
        default=None, description="Folder of a fused model's checkpoint, as training exports it."
    )
    recipe: str | None = Field(
        default=None, description="An earlier recipe, by name or path: its train stage runs first."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = ("language_model", "checkpoint", "recipe")
        given = [name for name in origins if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(origins)}, found {given or 'none'}")
        if given != ["language_model"] and (self.revision or self.vision_tower or self.vision_revision):
            raise ValueError(f"revision and vision_tower go with language_model, not with {given[0]}")
        return self


class TrainedModel(Section):
    """Backbone, fusion and the weights to start from: what the train stage builds."""

    backbone: Literal["tiny", "helium", "qwen2_5_vl"] = Field(description="Language model and vision tower.")
    fusion: Fusion = Field(default_factory=Fusion, description="How images enter the language model.")
    weights: Weights | None = Field(
        default=None, description="What training starts from; `tiny` starts at random where not given."
    )


class Model(TrainedModel):
    """Backbone, fusion, tokenizer and chat template."""

    tokenizer: Tokenizer = Field(
        default_factory=lambda: Tokenizer(train_bpe=BpeTraining()),
        description="Where the tokenizer comes from.",
    )
    template: Literal["casa-1", "qwen-1"] = Field(default="casa-1", description="Versioned chat template.")


class Trains(Section):
    """Which parts of the model training changes (Table 10's column)."""

    language_model: bool = Field(default=True, description="The language model, embeddings and head.")
    vision_blocks: Literal["all"] | Index = Field(
        default="all", description="So many of the vision tower's last blocks, or the whole tower."
    )
    fusion: bool = Field(default=True, description="What the fusion added.")


class Train(Section):
    """Optimisation. The global batch is set here, so that it does not depend on the number of workers."""

    steps: Count = Field(description="Optimiser steps.")
    seed: Index | None = Field(
        default=None,
        description="Of initial weights and order, where it is another than the run's: for runs on the same "
        "data.",
    )
    sequences_per_step: Count = Field(
        description="Packed image sequences in an image step, over all workers."
    )
    videos_per_step: Count = Field(default=2, description="Videos in a video step, over all workers.")
    image_video_ratio: Annotated[list[Index], Field(min_length=2, max_length=2)] = Field(
        default=[1, 1], description="Steps on packed images to steps on video, for example [3, 1]."
    )
    trains: Trains = Field(default_factory=Trains, description="Which parts training changes.")
    learning_rate: Positive = Field(
        description="Peak of AdamW's learning rate; of new parameters only, where existing_learning_rate is "
        "given."
    )
    existing_learning_rate: Positive | None = Field(
        default=None, description="Peak for the language model and the vision tower, as 1e-5 in the paper."
    )
    warmup_steps: Index = Field(
        default=0, description="Steps over which the learning rate rises to its peak."
    )
    decay_steps: Index = Field(default=0, description="Steps over which it falls to 0 at the end.")
    adam_betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.99],  # a second moment of 0.999 is not warm when a run of a thousand steps ends
        description="How slowly AdamW's two moments change.",
    )
    weight_decay: NonNegative = Field(default=0.01, description="AdamW's weight decay; with 0 it is Adam.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 computes in bfloat16 beside float32 master weights."
    )
    clip_grad_norm: NonNegative = Field(
        default=1.0,
        description="Largest norm of the gradient, to which a larger one is scaled; 0 for no limit.",
    )
    checkpoint_every: Count = Field(default=100, description="Steps between checkpoints.")
    spike_nats: NonNegative = Field(
        default=3.0,
        description="Stop where a loss lies so far above the median of the last hundred; 0 never does.",
    )
    evaluate_every: Index = Field(
        default=0, description="Steps between measurements of the held-out loss; 0 for none."
    )
    held_out_sequences: Count = Field(
        default=32, description="Packed sequences of each kind that are held out for it, and not trained on."
    )
    score_every: Index = Field(
        default=0,
        description="Steps between scores of held-out questions, which another process asks a copy of the "
        "model; 0 for none.",
    )
    scored_questions: Count = Field(
        default=200, description="Held-out questions and clips of each source for it, evenly spread."
    )

    @field_validator("clip_grad_norm", mode="before")
    @classmethod
    def _unlimited(cls, value: Any) -> Any:
        """``null`` and ``.inf`` say what 0 says: one setting, one fingerprint."""
        return 0.0 if value is None or value == math.inf else value

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Packed sequences of an image step and of a video step, over all workers."""
        return {"image": self.sequences_per_step, "video": self.videos_per_step}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} is more than "
                f"steps = {self.steps}; lower decay_steps (now {self.decay_steps}) or raise steps"
            )
        if not any(self.image_video_ratio):
            raise ValueError(
                "image_video_ratio = [0, 0] leaves nothing to train on; expected for example [3, 1]"
            )
        return self


class Evaluate(Section):
    """What the trained model is measured with, and beside what."""

    baselines: list[Literal["blind"]] = Field(
        default_factory=lambda: ["blind"], description="`blind`: the same recipe, trained without images."
    )
    batch_size: Count = Field(default=64, description="Questions answered at once.")
    max_new_tokens: Count = Field(default=8, description="Longest answer to a question, tokens.")
    frame_tolerance: Index = Field(default=1, description="Frames by which a live word may be early or late.")


class Replicas(Section):
    """Bounds of the endpoint's autoscaling."""

    min: Count = Field(default=1, description="Replicas that always run.")
    max: Count = Field(default=1, description="Replicas at the most.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        return self


class Deploy(Section):
    """The endpoint that serves the trained model."""

    model_name: ModelName = Field(description="Name the endpoint serves the model under.")
    models: dict[ModelName, str] = Field(
        default={},
        description="Further checkpoints at the same address, by the names clients put in `model`: folders "
        "or s3:// URIs of checkpoints or of train artifacts.",
    )
    models_per_engine: Count = Field(
        default=2,
        description="Models that a replica holds in memory at a time. One that is asked for takes the place "
        "of the one not used for longest, never of one with answers or live sessions.",
    )
    max_new_tokens: Count = Field(default=128, description="Longest answer a client may ask for, tokens.")
    live_query: str = Field(
        default="", description="What a live session is asked where its client asks nothing."
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Type the endpoint computes in; `auto`: that of the trained weights."
    )
    compile: bool = Field(
        default=False,
        description="Compile decode steps before the endpoint is ready: faster answers, a longer start. "
        "Needs a C++ compiler, on GPUs Triton.",
    )
    graphs: bool = Field(
        default=False,
        description="Record decode steps and the vision tower as CUDA graphs, on GPUs; not with `compile`.",
    )
    quantize: Literal["none", "int8"] = Field(
        default="none", description="Type in which decode steps hold the weights, on CPUs; `none`: `dtype`."
    )
    replicas: Replicas = Field(default_factory=Replicas, description="Bounds of autoscaling.")
    endpoints: Count = Field(
        default=1,
        description="Processes that clients connect to, before the engines; with two, others go on at once "
        "when one dies.",
    )
    access: Access = Field(default_factory=Access, description="Who may use the endpoint.")
    limits: Limits = Field(default_factory=Limits, description="Bounds of each replica.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.model_name in self.models:
            raise ValueError(f"models has {self.model_name!r}, the name of the run's own model; rename one")
        return self


class Report(Section):
    """The run's HTML report."""

    gallery: Index = Field(default=24, description="Pictures shown with question, answer and truth.")
    timelines: Index = Field(default=4, description="Live clips shown with their caption timeline.")


class Recipe(Section):
    """A run from raw files to a live endpoint."""

    name: ModelName = Field(description="Name of the run.")
    seed: Index = Field(
        default=0, description="Seed of everything random: corpora, packing, initial weights, order."
    )
    data: Data = Field(description="Where samples come from.")
    model: Model = Field(description="What is trained.")
    pack: Pack = Field(description="What a packed sequence holds, and how sources are mixed.")
    train: Train = Field(description="Optimisation.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="What the model is measured with.")
    deploy: Deploy = Field(description="The endpoint.")
    report: Report = Field(default_factory=Report, description="The report.")
    sweep: Sweep | None = Field(default=None, description="Variants for `casa sweep` to compare.")
    where: Where = Field(default_factory=Where, description="On what it runs; never part of a fingerprint.")

    @model_validator(mode="after")
    def _weights_are_of_the_backbone(self) -> Self:
        weights = self.model.weights
        if self.model.backbone == "tiny" and weights is not None and weights.language_model is not None:
            raise ValueError(
                "model.weights.language_model names published weights, and backbone tiny has none; set "
                "model.backbone to helium or qwen2_5_vl, or start from a checkpoint"
            )
        return self

    @model_validator(mode="after")
    def _pictures_fit(self) -> Self:
        self.pack.check_sides(self.model.backbone)
        self.pack.check_sources(self.data.sources)
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        images, videos = self.train.image_video_ratio
        for name, steps in (("sequences_per_step", images), ("videos_per_step", videos)):
            batch = getattr(self.train, name)
            for setting in ("workers", "blind_workers"):
                workers = getattr(self.where.train, setting)
                if isinstance(workers, int) and steps and batch % workers:
                    raise ValueError(
                        f"train.{name} = {batch} cannot be shared evenly by where.train.{setting} = "
                        f"{workers}; use a multiple of {workers}, or "
                        f"{_largest_divisor(batch, workers)} workers"
                    )
        if self.train.precision == "bf16" and not self.where.train.zero_stage:
            raise ValueError(
                "train.precision = bf16 needs where.train.zero_stage 1, 2 or 3: without ZeRO there are no "
                "float32 master weights, and small updates round to nothing; set zero_stage to 1 or more"
            )
        has_video = any(source.has_video for source in self.data.sources.values())
        has_pictures = any(not source.has_video for source in self.data.sources.values())
        if (videos and not has_video) or (images and not has_pictures):
            missing = "video" if videos and not has_video else "picture"
            ratio = [1, 0] if missing == "video" else [0, 1]
            raise ValueError(
                f"train.image_video_ratio = [{images}, {videos}] asks for {missing} steps, and no source of "
                f"data.sources has any {missing}; set it to {ratio} or add a source"
            )
        return self


def _largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in range(1, limit + 1) if number % divisor == 0)
