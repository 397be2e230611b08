"""Groups of worker processes that join a process group over gloo on loopback, without Ray."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, start_processes

from casa_core.batch import PackedSequence
from pipelines.train.loader import Document, SequenceReader
from pipelines.train.settings import TrainJob
from pipelines.train.worker import train

ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@contextmanager
def process_group(meeting: str | Path, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """This process as a member of a group that meets in a folder; alone by default."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (ENVIRONMENT | own).items():
            environment.setenv(name, value)
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=world_size
        )
        yield
        dist.destroy_process_group()


def start_group(world_size: int, work: Callable[..., None], *args: Any) -> ProcessContext:
    """Start processes that each call ``work(rank, world_size, *args)``; :func:`finish` waits for them."""
    meeting = tempfile.mkdtemp(prefix="casa-meeting-")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)  # before OpenMP starts in the new processes
        context = start_processes(
            _work,
            args=(world_size, meeting, work, args),
            nprocs=world_size,
            join=False,
            daemon=True,
            start_method="spawn",
        )
    assert context is not None
    return context


def finish(*groups: ProcessContext) -> None:
    """Wait for some groups; none of their processes outlives this call.

    Raises:
        ProcessRaisedException: If ``work`` raised in one of them.
    """
    try:
        for group in groups:
            while not group.join():
                pass
    finally:
        for process in (process for group in groups for process in group.processes if process.is_alive()):
            process.kill()


def _work(rank: int, world_size: int, meeting: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    with process_group(meeting, rank, world_size):
        work(rank, world_size, *args)
    if rank == 0:
        shutil.rmtree(meeting)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job, and the output folder of another one it resumes from, as a kill would have left that folder.

    ``poisoned``: a sequence whose pictures hold a value that is no number.
    """

    job: TrainJob
    resume_from: str | None = None
    poisoned: int | None = None


def start_workers(world_size: int, assignments: Sequence[Assignment]) -> ProcessContext:
    """Start a group of training workers that does some assignments, one after the other."""
    return start_group(world_size, _train, list(assignments))


def _train(rank: int, world_size: int, assignments: list[Assignment]) -> None:
    for assignment in assignments:
        if rank == 0 and assignment.resume_from:
            leave_as_killed(Path(assignment.resume_from), Path(assignment.job.output))
        dist.barrier()
        Path(assignment.job.output).mkdir(parents=True, exist_ok=True)
        if assignment.poisoned is not None:
            poison(assignment.poisoned)
        train(assignment.job, rank=rank, world_size=world_size)
        dist.barrier()


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
