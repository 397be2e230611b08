"""Groups of real training workers: processes that meet over gloo on loopback, without Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, start_processes

from casa_core.batch import PackedSequence
from pipelines.train.loader import Document, SequenceReader
from pipelines.train.worker import TrainJob, train


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job, and the output folder of another one it goes on from, as a kill would have left that folder.

    ``poisoned``: a sequence whose pictures hold a value that is no number.
    """

    job: TrainJob
    resume_from: str | None = None
    poisoned: int | None = None


def start_workers(world_size: int, assignments: Sequence[Assignment]) -> ProcessContext:
    """Start a group that does some assignments, one after the other; ``join()`` waits for it.

    The caller's environment needs ``DS_ACCELERATOR=cpu`` and ``GLOO_SOCKET_IFNAME=lo``.
    """
    meeting = Path(tempfile.mkdtemp(prefix="casa-meeting-")) / "store"
    context = start_processes(
        _work,
        args=(world_size, str(meeting), list(assignments)),
        nprocs=world_size,
        join=False,
        daemon=True,
        start_method="spawn",
    )
    assert context is not None
    return context


def _work(rank: int, world_size: int, meeting: str, assignments: list[Assignment]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    for assignment in assignments:
        if rank == 0 and assignment.resume_from:
            leave_as_killed(Path(assignment.resume_from), Path(assignment.job.output))
        dist.barrier()
        Path(assignment.job.output).mkdir(parents=True, exist_ok=True)
        if assignment.poisoned is not None:
            poison(assignment.poisoned)
        train(assignment.job, rank=rank, world_size=world_size)
        dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        shutil.rmtree(Path(meeting).parent)


def leave_as_killed(finished: Path, output: Path) -> None:
    """What a kill leaves: whole checkpoints, a half-written newest one, metrics beyond them, and no model."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copytree(finished / "checkpoints", output / "checkpoints")
    sorted((output / "checkpoints").glob("step-*"))[-1].joinpath("complete.json").unlink()
    shutil.copy(finished / "metrics.jsonl", output / "metrics.jsonl")


def poison(sequence_number: int) -> None:
    """In this process, one value of a sequence's pictures is read as no number."""
    read = SequenceReader.read

    def poisoned(self: SequenceReader, number: int) -> tuple[PackedSequence, tuple[Document, ...]]:
        sequence, documents = read(self, number)
        if number == sequence_number:
            sequence.patches_PE[0][0, 0] = float("nan")
        return sequence, documents

    SequenceReader.read = poisoned
