"""Resumes from a checkpoint with any number of workers and ZeRO stage; each reads only its own parts."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from casa_core.errors import StoreError
from pipelines.storage.transfer import blocks
from pipelines.storage.uri import Folder
from pipelines.train.checkpoint import zero_state
from pipelines.train.checkpoint.save import FROZEN, SavedStep, checked_files, list_checkpoints
from pipelines.train.checkpoint.tensor_file import TensorFile


def resume(engine: Any, root: Folder, *, rank: int, world_size: int) -> int:
    """Restore the newest whole and undamaged checkpoint; every worker calls it.

    A damaged one is skipped with a warning: the one before it costs a few steps, waiting for a person more.

    Returns:
        Steps already done; 0 without a checkpoint.

    Raises:
        StoreError: If the newest holds another model, or all are damaged.
    """
    found = agreed_checkpoints(root, rank, world_size)
    damages: list[str] = []
    for saved in reversed(found):
        check_shapes(saved, zero_state.shapes(engine))
        damage = _any_worker(_damage(root, saved, rank, world_size), world_size)
        if damage is None:
            _restore(engine, root, saved)
            return saved.steps_done
        damages.append(damage)
        warnings.warn(f"Checkpoint {saved.folder} is passed over: {damage}", stacklevel=2)
    if found:
        raise StoreError(
            f"None of the {len(found)} checkpoints in {root} can be used.",
            damages[0],
            f"Restore the files, or remove {root} to start again.",
        )
    return 0


def agreed_checkpoints(root: Folder, rank: int, world_size: int) -> list[SavedStep]:
    """Rank 0's list of checkpoints, on every worker: another node may see a network disk's new file later."""
    found: list[Any] = [list_checkpoints(root) if rank == 0 else None]
    if world_size > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def check_shapes(saved: SavedStep, shapes: dict[str, list[int]]) -> None:
    """Check that a checkpoint's tensors have this model's names and shapes.

    Raises:
        StoreError: Names the first tensor that differs.
    """
    theirs = saved.marks["shapes"]
    for name in (*shapes, *theirs):
        if theirs.get(name) != shapes.get(name):
            raise StoreError(
                f"The checkpoint {saved.folder} is of another model.",
                f"Its {name} has shape {theirs.get(name, 'none')}, this model's {shapes.get(name, 'none')}.",
                "Use the recipe it was trained with, or another folder of checkpoints.",
            )


def _damage(root: Folder, saved: SavedStep, rank: int, world_size: int) -> str | None:
    """The first damage in this worker's share of the files, as a sentence; reads each once for its digest."""
    try:
        files = checked_files(root, saved)
    except StoreError as error:
        return error.why
    for folder, entry in files[rank::world_size]:
        problem = file_damage(folder / entry["file"], entry)
        if problem is not None:
            return problem
    return None


def file_damage(path: Folder, entry: dict[str, Any]) -> str | None:
    """How a file differs from the one that was written, as a sentence; ``None`` where it is the same."""
    digest, size = hashlib.sha256(), 0
    try:
        for block in blocks(path):
            digest.update(block)
            size += len(block)
    except (OSError, StoreError) as error:
        return f"{path.name} cannot be read ({str(error).partition(chr(10))[0]})."
    if size != entry["bytes"]:
        return f"{path.name} has {size} bytes, {entry['bytes']} were written."
    if digest.hexdigest() != entry["sha256"]:
        return f"{path.name} has another content than was written."
    return None


def _any_worker(problem: str | None, world_size: int) -> str | None:
    """The problem of the lowest rank that has one, on every worker."""
    if world_size == 1:
        return problem
    problems: list[str | None] = [None] * world_size
    dist.all_gather_object(problems, problem)
    return next((one for one in problems if one is not None), None)


def _restore(engine: Any, root: Folder, saved: SavedStep) -> None:
    parts = Parts(saved)
    zero_state.restore(engine, parts.read, saved.marks["updates"])
    frozen = TensorFile(root / FROZEN)
    zero_state.restore_frozen(engine, frozen.read)


class Parts:
    """Trained parameters and their moments, assembled from all workers' files."""

    def __init__(self, saved: SavedStep) -> None:
        self._saved = saved
        self._files: dict[str, TensorFile] = {}
        self._where: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for entry in saved.marks["files"]:
            for name, start, length in entry["spans"]:
                self._where[name].append((start, length, entry["file"]))

    def names(self) -> Iterator[str]:
        """Names of the trained parameters."""
        return iter(self._where)

    def read(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """Elements of a flattened parameter's master weight or moment, 1-D float32.

        Args:
            kind: One of :data:`pipelines.train.checkpoint.zero_state.KINDS`.
            name: The parameter.
            start, length: Which elements.

        Raises:
            StoreError: If some of them are in no worker's file.
        """
        out = torch.empty(length, dtype=torch.float32)
        missing = length
        for begin, size, file in self._where[name]:
            first, last = max(begin, start), min(begin + size, start + length)
            if first < last:
                part = self._open(file).read(f"{kind}/{begin}/{name}", first - begin, last - first)
                out[first - start : last - start] = part
                missing -= last - first
        if missing:
            raise StoreError(
                f"{self._saved.folder} lacks {missing} elements of {name}.",
                "No worker's file has them: it was trained with other parts frozen.",
                "Use the recipe it was trained with; to train other parts, start from its exported model.",
            )
        return out

    def _open(self, file: str) -> TensorFile:
        if file not in self._files:
            self._files[file] = TensorFile(self._saved.folder / file)
        return self._files[file]
