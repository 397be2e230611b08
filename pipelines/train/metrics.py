"""``metrics.jsonl``: one line a step, readable while training runs and exact after a resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

FILE = "metrics.jsonl"


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
        mfu: Share of the GPUs' peak rate that the model's own operations take; ``None`` on others.
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

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps recorded so far; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def progress_message(line: dict[str, Any], recent: list[dict[str, Any]], steps: int) -> str:
    """``loss 0.132 · 6.1k text tok/s · 40 s left`` from the last steps' pace."""
    seconds = sum(step["seconds"] for step in recent)
    tokens_per_second = sum(step["text_tokens"] for step in recent) / max(seconds, 1e-9)
    left = (steps - line["step"]) * seconds / len(recent)
    return f"loss {line['loss']:.3f} · {tokens_per_second / 1000:.1f}k text tok/s · {left:.0f} s left"
