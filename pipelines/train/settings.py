"""The train stage's settings and a worker's job, made of the recipe's sections, which hold every default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from casa_core.dtypes import DTYPES
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.recipe.model import Train, TrainedModel
from pipelines.recipe.where import TrainWorkers

SNAPSHOTS = "snapshots"
"""Folder beside the checkpoints for the models that are scored during the run."""
LOCAL_WEIGHTS = ("language_model", "vision_tower", "checkpoint")
"""Weights that may lie in a local folder, whose path then stands beside the settings that count."""


@stage_settings
class TrainSettings:
    """What decides the result of training.

    Attributes:
        model: Backbone, fusion and the weights to start from.
        train: Optimisation.
        seed: Seed of initial weights and data order.
        images: ``False`` trains the blind baseline.
        evaluate: How ``train.score_every`` scores the model; ``None`` where it does not.
    """

    model: TrainedModel
    train: Train
    seed: int
    images: bool
    evaluate: BenchmarkSettings | None

    @property
    def dtype(self) -> torch.dtype:
        """What forwards compute in."""
        return DTYPES[self.train.precision]

    def scores(self, step: int) -> bool:
        """Whether the model is scored after a step; after the last, the evaluate stage does it."""
        every = self.train.score_every
        return self.evaluate is not None and step % every == 0 and step < self.train.steps


@stage_settings
class TrainJob:
    """Everything that a training worker needs; plain values, so that it travels to any node.

    Attributes:
        settings: What is trained, on what, how.
        placement: On what it runs; no part of the result.
        pack, sources: Input artifacts: the pack, and the clean artifact of each source.
        start: Checkpoint folder of a fused model to start from; else ``settings.model`` names the weights.
        start_digest: Changes with the files of ``start``, where it may lie on S3.
        output: Folder that all workers can write, local or on S3.
        checkpoints: Folder of this run's checkpoints, local or on S3.
        run_name, run_key, track_folder: The run's name, identity and folder for trackers
            (:mod:`pipelines.train.tracking`).
    """

    settings: TrainSettings
    placement: TrainWorkers
    pack: str
    sources: dict[str, str]
    start: str | None
    start_digest: str
    output: str
    checkpoints: str
    run_name: str
    run_key: str
    track_folder: str


def read_train_settings(values: Mapping[str, Any]) -> TrainSettings:
    """The stage's settings, from the JSON that its context carries.

    Weights in a local folder count by content in ``weights``, and the folder's path stands beside it.

    Raises:
        ConfigError: If a field is missing, unknown or of the wrong type.
    """
    paths = {name: values[name] for name in LOCAL_WEIGHTS if name in values}
    rest = {name: value for name, value in values.items() if name not in (*LOCAL_WEIGHTS, "weights")}
    weights = {**values["weights"], **paths} or None
    return read_settings(TrainSettings, rest | {"model": {**values["model"], "weights": weights}})
