"""Saves training checkpoints, from which any number of workers under any ZeRO stage can resume.

``step-00000100/`` holds one safetensors file per worker, with its parts of weights and moments in float32
(:mod:`pipelines.train.checkpoint.zero_state`), and ``complete.json``, written last, with the files' sizes and
digests; a folder without it, or with one that is damaged, does not count. Frozen weights are written once per
run, as is ``model/``: configuration and processor. Their digest stands in ``frozen.json``, and again in each
``complete.json``. Random numbers and the loader's position follow from the seed and the number of
steps done, so nothing else is stored of them.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from casa_core.errors import CasaError, StoreError
from casa_core.processing.processor import CasaProcessor
from pipelines.storage.atomic import remove_leftovers, write_whole
from pipelines.storage.errors import disk_error
from pipelines.storage.json_files import read_json
from pipelines.storage.transfer import local_output, remove_tree
from pipelines.storage.uri import Folder
from pipelines.train.checkpoint import zero_state
from pipelines.train.checkpoint.tensor_file import write_tensors

COMPLETE = "complete.json"
FORMAT = "casa-training/1"
MODEL = "model"
FROZEN = "frozen.safetensors"
FROZEN_DIGEST = "frozen.json"
POLL_SECONDS = 0.05
OTHERS_TIMEOUT_S = 1200.0
"""Less than the half hour after which a collective fails on the others, so that this error comes first."""


@dataclass(frozen=True, slots=True)
class SavedStep:
    """A whole checkpoint.

    Attributes:
        folder: Its folder.
        marks: The content of its ``complete.json``.
    """

    folder: Folder
    marks: dict[str, Any]

    @property
    def steps_done(self) -> int:
        """Steps of training before it."""
        return self.marks["steps_done"]


def list_checkpoints(root: Folder) -> list[SavedStep]:
    """The whole checkpoints under a folder, oldest first."""
    found = []
    for folder in _step_folders(root):
        marks = read_json(folder / COMPLETE, dict)
        if marks is not None:
            found.append(SavedStep(folder, marks))
    return sorted(found, key=lambda saved: saved.steps_done)


def checked_files(root: Folder, saved: SavedStep) -> list[tuple[Folder, dict[str, Any]]]:
    """Folder and entry (``file``, ``bytes``, ``sha256``) of each file that a checkpoint needs.

    Raises:
        StoreError: If the entry of the frozen weights is in neither of its places.
    """
    frozen = saved.marks.get("frozen") or read_json(root / FROZEN_DIGEST, dict)
    if frozen is None:
        raise StoreError(
            f"The checkpoint {saved.folder} cannot be checked.",
            f"{FROZEN_DIGEST} beside it is missing or damaged.",
            "Restore the file, or start again from an exported model.",
        )
    return [*((saved.folder, entry) for entry in saved.marks["files"]), (root, frozen)]


def _step_folders(root: Folder) -> list[Folder]:
    """Folders of checkpoints, whole or not."""
    return [folder for folder in root.iterdir() if folder.name.startswith("step-")] if root.is_dir() else []


class Checkpointer:
    """Saves a run's checkpoints; every worker has one.

    A step waits only for a copy to host memory. A thread writes, uploads and removes old checkpoints, one
    save at a time.

    Args:
        root: The run's folder of checkpoints, local or on S3, seen by all workers.
        rank, world_size: This worker, and the number of workers.
        keep: Number of newest checkpoints to keep.
        keep_best: Number of checkpoints with the lowest metric to keep besides.
        background: ``False``: a save waits until it is written.
    """

    def __init__(
        self,
        root: Folder,
        *,
        rank: int,
        world_size: int,
        keep: int,
        keep_best: int,
        background: bool = True,
    ) -> None:
        self.root, self.rank, self.world_size = root, rank, world_size
        self._keep, self._keep_best, self._background = keep, keep_best, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, engine: Any, processor: CasaProcessor, *, steps_done: int, metric: float | None = None
    ) -> None:
        """Begin a checkpoint, after the previous one is written; every worker calls it.

        Args:
            engine: From :func:`pipelines.train.zero.wrap`.
            processor: Stored once beside the weights.
            steps_done: Steps of training so far.
            metric: Compared for ``keep_best``; lower is better.

        Raises:
            StoreError: If the previous one could not be written.
        """
        self.close()
        nonce, first = self._agree()
        if first:
            self._write_once(engine, processor)
        parts = zero_state.capture(engine)
        marks = {
            "format": FORMAT,
            "steps_done": steps_done,
            "updates": zero_state.updates_done(engine),
            "metric": metric,
            "world_size": self.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "dtype": str(next(engine.module.parameters()).dtype).removeprefix("torch."),
            "shapes": zero_state.shapes(engine),
        }
        write = _Write(self.root / f"step-{steps_done:08d}", nonce, parts, marks, self)
        if self._background:
            self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._run(write)
            self.check()

    def check(self) -> None:
        """Raise the error of writing in the background, if there is one; call it every step.

        Raises:
            StoreError: For example if the disk is full or the bucket unreachable.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the save in progress.

        Raises:
            StoreError: If it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def remove_old(self) -> None:
        """Remove checkpoints that are no longer kept, and remains of older ones that were killed."""
        whole = list_checkpoints(self.root)
        if not whole:
            return
        best = sorted((s for s in whole if s.marks["metric"] is not None), key=lambda s: s.marks["metric"])
        kept = {saved.folder.name for saved in [*whole[-self._keep :], *best[: self._keep_best]]}
        for folder in _step_folders(self.root):
            if folder.name not in kept and folder.name < whole[-1].folder.name:
                (folder / COMPLETE).unlink(missing_ok=True)  # first: half removed, it must not look whole
                remove_tree(folder)
        # No worker begins another save before this one is complete.
        remove_leftovers(self.root, older_than=timedelta(0))

    def _run(self, write: _Write) -> None:
        try:
            write.run()
        except BaseException as error:
            self._error = disk_error(error, write.folder) or error

    def _agree(self) -> tuple[str, bool]:
        """Rank 0's choice for all: a nonce, so that files of a killed save are not taken for this one's, and
        whether this is the run's first save."""
        choice: list[Any] = [None, None]
        if self.rank == 0:
            choice = [uuid.uuid4().hex[:8], read_json(self.root / FROZEN_DIGEST, dict) is None]
        if self.world_size > 1:
            dist.broadcast_object_list(choice, src=0)
        return choice[0], choice[1]

    def _write_once(self, engine: Any, processor: CasaProcessor) -> None:
        """Write what no step changes: frozen weights, configuration, processor."""
        frozen = zero_state.gather_frozen(engine)
        problem: list[Any] = [None]
        if self.rank == 0:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with local_output(self.root / MODEL) as folder:
                    engine.module.config.save_pretrained(folder)
                    processor.save_pretrained(folder)
                written = write_tensors(self.root / FROZEN, frozen)
                digest = {"file": FROZEN, "bytes": written.bytes, "sha256": written.sha256}
                write_whole(self.root / FROZEN_DIGEST, json.dumps(digest))
            except (OSError, CasaError) as error:  # all others wait for word of it
                problem[0] = disk_error(error, self.root) or error
        if self.world_size > 1:
            dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise problem[0]


@dataclass(frozen=True, slots=True)
class _Write:
    """One worker's part of one save."""

    folder: Folder
    nonce: str
    parts: dict[tuple[str, str, int], Any]
    marks: dict[str, Any]
    owner: Checkpointer

    def run(self) -> None:
        rank, workers = self.owner.rank, self.owner.world_size
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{rank:05d}-of-{workers:05d}-{self.nonce}.safetensors"
        tensors = {f"{kind}/{start}/{name}": part for (kind, name, start), part in self.parts.items()}
        written = write_tensors(self.folder / name, tensors)
        spans = [
            [parameter, start, part.numel()]
            for (kind, parameter, start), part in self.parts.items()
            if kind == "master"
        ]
        entry = {"file": name, "bytes": written.bytes, "sha256": written.sha256, "spans": spans}
        write_whole(self.folder / self._note(rank), json.dumps(entry))
        if rank == 0:
            entries = [self._wait_for(other) for other in range(workers)]
            frozen = read_json(self.owner.root / FROZEN_DIGEST, dict)
            marks = {**self.marks, "files": entries, "frozen": frozen}
            write_whole(self.folder / COMPLETE, json.dumps(marks))
            self._remove_leftovers({entry["file"] for entry in entries})
            self.owner.remove_old()

    def _note(self, rank: int) -> str:
        return f"rank-{rank:05d}-{self.nonce}.json"

    def _wait_for(self, rank: int) -> dict[str, Any]:
        """The entry of another worker's file, once that worker has written it."""
        note, began = self.folder / self._note(rank), time.monotonic()
        while time.monotonic() - began < OTHERS_TIMEOUT_S:
            entry = read_json(note, dict)
            if entry is not None:
                return entry
            time.sleep(POLL_SECONDS)
        raise StoreError(
            f"Worker {rank} has not written its part of {self.folder} in {OTHERS_TIMEOUT_S / 60:.0f} min.",
            "The first worker completes a checkpoint when all have written theirs.",
            "See that worker's log, and check that where.store is S3, or a folder that all nodes share.",
        )

    def _remove_leftovers(self, files: set[str]) -> None:
        for path in self.folder.glob("rank-*"):
            if path.name not in files:
                path.unlink(missing_ok=True)
