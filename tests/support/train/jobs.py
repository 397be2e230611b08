"""Jobs of training workers on small artifacts; what a test leaves open is the recipe's default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.recipe.model import Fusion, Train, TrainedModel
from pipelines.recipe.where import TrainWorkers
from pipelines.train.settings import TrainJob, TrainSettings
from tests.support.core.artifacts import TrainingData


def make_job(
    data: TrainingData, train: Mapping[str, Any], *, seed: int, output: str | Path = "", **placement: Any
) -> TrainJob:
    """A job that trains the tiny model with cross-attention, and tracks nothing."""
    model = TrainedModel(backbone="tiny", fusion=Fusion(kind="cross_attention"))
    return TrainJob(
        settings=TrainSettings(model=model, train=Train(**train), seed=seed, images=True, evaluate=None),
        placement=TrainWorkers(track=[], **placement),
        pack=str(data.pack),
        sources={name: str(folder) for name, folder in data.sources.items()},
        start=None,
        start_digest="",
        output=str(output),
        checkpoints=str(Path(output) / "checkpoints"),
        run_name="",
        run_key="",
        track_folder="",
    )


def changed(
    job: TrainJob,
    *,
    output: str | Path,
    checkpoints: str | Path | None = None,
    images: bool = True,
    train: Mapping[str, Any] | None = None,
    **placement: Any,
) -> TrainJob:
    """The job with another output folder, and with some of its settings or its placement changed."""
    settings = Train(**{**job.settings.train.model_dump(), **(train or {})})
    return replace(
        job,
        settings=replace(job.settings, train=settings, images=images),
        placement=TrainWorkers(**{**job.placement.model_dump(), **placement}),
        output=str(output),
        checkpoints=str(checkpoints or Path(output) / "checkpoints"),
    )
