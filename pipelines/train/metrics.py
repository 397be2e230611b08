"""``metrics.jsonl``: one line a step, readable while training runs and exact after a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipelines.text_format import duration, number

FILE = "metrics.jsonl"
SHOWN_WAIT = 0.01
"""Share of the time that steps wait for data from which the progress line says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step did.

    Attributes:
        step: From 1.
        kind: ``image`` or ``video``.
        loss: Mean next-token loss of the step's answer tokens, nats.
        learning_rate: Of the update; of new parameters, where they have a rate of their own.
        existing_learning_rate: Of parameters that were there before the fusion, where they have another.
        grad_norm: Of the whole gradient, before clipping.
        text_tokens, image_tokens, trained_tokens: Over all workers.
        seconds: Wall clock of the whole step, data wait included.
        loader_wait_s: Of it, time the first worker waited for its batch.
        source_losses: Mean loss of an answer token by source.
        batch: Digest of the sequences' numbers: equal where two runs trained on the same.
        workers: How many took the step.
        text_fill, image_fill: Share of the packed sequences' budgets that is used; ``None`` where the pack
            does not say its budgets.
        memory_gib: The first worker's peak: of its GPU, or of the process where it has none.
        tflops: 10¹² operations of the model a second, on each worker: what checkpointing does again is not
            counted.
        mfu: The share that is of a GPU's peak rate; ``None`` without a GPU whose rate is known.
        held_out_loss: By kind, after the step, where it was measured.
    """

    step: int
    kind: str
    loss: float
    learning_rate: float
    existing_learning_rate: float | None = None
    grad_norm: float
    text_tokens: int
    image_tokens: int
    trained_tokens: int
    seconds: float
    loader_wait_s: float
    source_losses: dict[str, float] = field(default_factory=dict)
    batch: str = ""
    workers: int = 1
    text_fill: float | None = None
    image_fill: float | None = None
    memory_gib: float = 0.0
    tflops: float = 0.0
    mfu: float | None = None
    held_out_loss: dict[str, float] | None = None


class MetricsLog:
    """Appends steps to the file; opening it drops what lies beyond the step training resumes from."""

    def __init__(self, folder: Path, *, steps_done: int) -> None:
        path = folder / FILE
        kept = [line for line in read_lines(path) if line["step"] <= steps_done]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self._file: TextIO = path.open("a", buffering=1)  # a line is in the file when the step is over

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(json.dumps(asdict(metrics)) + "\n")

    def flush(self) -> None:
        """On the disk, not only in its cache."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps recorded so far; a last line that is still being written is left out."""
    return MetricsFollower(path).poll()


class MetricsFollower:
    """Reads a metrics file as it grows, without reading a long run's again.

    Args:
        path: The file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def poll(self) -> list[dict[str, Any]]:
        """Steps since the last call; all of them once a resumed run has replaced the file."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be under way
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def progress_message(recent: Sequence[dict[str, Any]], steps: int) -> str:
    """``loss 0.132 image, 0.871 video · 6.1k text, 23k image tok/s · MFU 14% · 4 workers · 2 h 5 min left``.

    Args:
        recent: The last steps, from whose pace the rest is foretold.
        steps: Of the run.
    """
    seconds = max(sum(step["seconds"] for step in recent), 1e-9)
    losses = {step["kind"]: step["loss"] for step in recent}
    last, wait = recent[-1], sum(step["loader_wait_s"] for step in recent) / seconds
    text, image = (sum(step[f"{kind}_tokens"] for step in recent) / seconds for kind in ("text", "image"))
    parts = [
        "loss " + ", ".join(f"{loss:.3f} {kind}" for kind, loss in sorted(losses.items())),
        f"{number(text)} text, {number(image)} image tok/s",
    ]
    if last["mfu"] is not None:
        parts.append(f"MFU {last['mfu']:.0%}")
    if wait >= SHOWN_WAIT:
        parts.append(f"waits for data {wait:.0%}")
    parts.append(f"{last['workers']} worker{'s' if last['workers'] > 1 else ''}")
    left = (steps - last["step"]) * seconds / len(recent)
    return " · ".join([*parts, f"{duration(left)} left"])
