"""Exports a training checkpoint of any run as a model folder, on one machine and without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import torch

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, StoreError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import Folder
from pipelines.train.checkpoint.resume import Parts, file_damage
from pipelines.train.checkpoint.save import FROZEN, MODEL, SavedStep, checked_files, list_checkpoints
from pipelines.train.checkpoint.tensor_file import TensorFile


def export(root: Folder, output: Path, step: int | None = None) -> SavedStep:
    """Write a checkpoint's weights in the training precision, with configuration and processor.

    Args:
        root: A run's folder of checkpoints.
        output: Folder to write.
        step: Steps done; the newest checkpoint by default.

    Returns:
        The exported checkpoint.

    Raises:
        ConfigError: If there is no checkpoint of that step.
        StoreError: If files are missing or damaged.
    """
    saved = _choose(root, step)
    _check(root, saved)
    with local_copy(root / MODEL) as folder:
        config = CasaConfig.from_pretrained(folder)
        processor = CasaProcessor.from_pretrained(folder)
    assert isinstance(processor, CasaProcessor)
    model = CasaForConditionalGeneration(config).to(getattr(torch, saved.marks["dtype"]))
    parts, frozen = Parts(saved), TensorFile(root / FROZEN)
    trained = set(parts.names())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = parameter.numel()
            value = parts.read("master", name, 0, size) if name in trained else frozen.read(name)
            parameter.copy_(value.view_as(parameter))
    save_checkpoint(output, model, processor, provenance={"steps": saved.steps_done})
    return saved


def _choose(root: Folder, step: int | None) -> SavedStep:
    found = {saved.steps_done: saved for saved in list_checkpoints(root)}
    if not found:
        raise ConfigError(
            f"There is no whole checkpoint in {root}.",
            "A run writes its first after train.checkpoint_every steps.",
            "Name the folder that holds step-…, or the recipe of a run that has come so far.",
        )
    if step is None:
        return found[max(found)]
    if step not in found:
        raise ConfigError(
            f"There is no checkpoint of step {step} in {root}.",
            f"Those that were kept: {', '.join(map(str, sorted(found)))}.",
            "Give one of them as --step; where.train.keep says how many are kept.",
        )
    return found[step]


def _check(root: Folder, saved: SavedStep) -> None:
    for folder, entry in checked_files(root, saved):
        damage = file_damage(folder / entry["file"], entry)
        if damage is not None:
            raise StoreError(
                f"The checkpoint {saved.folder} cannot be exported.",
                damage,
                "Restore the file, or export another step.",
            )
