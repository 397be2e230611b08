"""Training checkpoints: all workers' shards under one folder, whole or not there.

``checkpoints/step-00000100/`` holds DeepSpeed's shards and, written last by the first worker after everyone
has finished, ``complete.json``. A folder without it does not exist for anyone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from casa_core.errors import StoreError

COMPLETE = "complete.json"
KEEP = 2


@dataclass(frozen=True, slots=True)
class SavedStep:
    """A whole checkpoint: its folder, the steps done, and the number of workers that wrote it."""

    folder: Path
    steps_done: int
    world_size: int


def newest(root: Path) -> SavedStep | None:
    """The last whole checkpoint under ``root``."""
    found = [
        SavedStep(marker.parent, marks["steps_done"], marks["world_size"])
        for marker in root.glob(f"step-*/{COMPLETE}")
        for marks in [json.loads(marker.read_text())]
    ]
    return max(found, key=lambda saved: saved.steps_done, default=None)


def save(engine: Any, root: Path, *, steps_done: int, rank: int, world_size: int) -> None:
    """Write a checkpoint; every worker calls it. Older ones beyond ``KEEP`` are removed once this one is
    whole."""
    folder = root / f"step-{steps_done:08d}"
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
        folder.mkdir(parents=True)
    _wait(world_size)
    engine.save_checkpoint(
        str(folder), tag="state", client_state={"rng": torch.get_rng_state()}, save_latest=False
    )
    _wait(world_size)
    if rank == 0:
        partial = folder / f"{COMPLETE}.partial"
        partial.write_text(json.dumps({"steps_done": steps_done, "world_size": world_size}))
        partial.replace(folder / COMPLETE)
        for old in sorted(root.glob("step-*"))[:-KEEP]:
            (old / COMPLETE).unlink(missing_ok=True)  # first: a half-removed folder must not look whole
            shutil.rmtree(old)
    _wait(world_size)


def load(engine: Any, saved: SavedStep, *, world_size: int) -> int:
    """Restore model, optimizer and RNG; returns the steps already done.

    Raises:
        StoreError: If another number of workers wrote it.
    """
    if saved.world_size != world_size:
        raise StoreError(
            f"the checkpoint at step {saved.steps_done} was written by {saved.world_size} workers",
            f"this run has {world_size}, and optimizer shards belong to a number of workers",
            f"finish with where.train.workers={saved.world_size}, or remove {saved.folder.parent} "
            "to start again",
        )
    path, client_state = engine.load_checkpoint(str(saved.folder), tag="state")
    if path is None:
        raise StoreError(
            f"{saved.folder} cannot be loaded",
            "DeepSpeed found no state in it",
            "remove the folder and run again",
        )
    torch.set_rng_state(client_state["rng"])
    return saved.steps_done


def _wait(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()
