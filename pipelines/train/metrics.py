"""``metrics.jsonl``: one line per step, readable while training runs and exact after a resume.

When training is over, what depends on the machines is moved to ``timings.jsonl``, so that equal runs have
equal metrics. :func:`read_lines` reads both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.storage.atomic import write_whole
from pipelines.storage.growing import Follower, append_to
from pipelines.storage.json_files import parse_json, read_json
from pipelines.storage.uri import Folder
from pipelines.text_format import duration, number

FILE, TIMINGS, SCORES = "metrics.jsonl", "timings.jsonl", "scores.json"
TIMED = ("seconds", "loader_wait_s", "workers", "memory_gib", "tflops", "mfu")
"""Fields of a step that depend on the machines."""
SHOWN_WAIT = 0.01
"""Share of time that steps wait for data, from which on the progress line shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Metrics of one step; tokens are counted over all workers.

    Attributes:
        step: From 1.
        kind: ``image`` or ``video``.
        loss: Mean loss per answer token, nats.
        learning_rate: Learning rate of the update; that of new parameters, where there are two.
        existing_learning_rate: Learning rate of parameters older than the fusion, where there are two.
        grad_norm: Norm of the whole gradient, before clipping.
        text_tokens, image_tokens, trained_tokens: Tokens of the step; trained ones are answer tokens.
        seconds: Wall clock of the whole step, with the wait for data.
        loader_wait_s: Rank 0's wait for data, s.
        source_losses: Source → mean loss per answer token, nats.
        batch: Digest of the sequences' numbers: equal where two runs trained on the same sequences.
        workers: Number of workers that took the step.
        text_fill, image_fill: Used share of the packed sequences' budgets; ``None`` where the pack does not
            record its budgets.
        memory_gib: Rank 0's peak memory: of its GPU, or of the process without one.
        tflops: 10¹² operations of the model per second and worker, without recomputation.
        mfu: Share of the GPU's peak rate; ``None`` without a GPU of known rate.
        held_out_loss: Kind → loss after the step, where it was measured.
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
    """Appends steps to the file; opening it drops the steps after the one that training resumes from.

    On S3 they reach other processes within seconds, and :func:`pipelines.storage.growing.finish` makes one
    object of them at the end.
    """

    def __init__(self, folder: Folder, *, steps_done: int) -> None:
        kept = [line for line in read_lines(folder / FILE) if line["step"] <= steps_done]
        content = "".join(json.dumps(line) + "\n" for line in kept)
        self._file = append_to(folder / FILE, content.encode())

    def write(self, metrics: StepMetrics) -> None:
        """Append a step; on a disk, readers see it at once."""
        self._file.write((json.dumps(asdict(metrics)) + "\n").encode())

    def flush(self) -> None:
        """Have the steps written so far survive this machine."""
        self._file.flush()

    def close(self) -> None:
        """Flush on S3, and close the file."""
        self._file.close()


def read_lines(path: Folder) -> list[dict[str, Any]]:
    """The steps recorded so far, with their times, without a last line that is still being written."""
    times = {line["step"]: line for line in MetricsFollower(path.with_name(TIMINGS)).poll()}
    return [{**times.get(line["step"], {}), **line} for line in MetricsFollower(path).poll()]


def set_times_apart(artifact: Folder) -> None:
    """Moves the times of all steps to a file of their own; no step is recorded any more."""
    steps = read_lines(artifact / FILE)
    times = [{name: step[name] for name in ("step", *TIMED)} for step in steps]
    rest = [{name: value for name, value in step.items() if name not in TIMED} for step in steps]
    for name, lines in ((TIMINGS, times), (FILE, rest)):  # killed in between, metrics have the times too
        write_whole(artifact / name, "".join(json.dumps(line) + "\n" for line in lines))


def read_scores(artifact: Folder) -> dict[int, dict[str, float]]:
    """Held-out scores of a model while it trained: step → headlines as shares of 1, ``<source>_<measure>``;
    empty where it was not scored."""
    return {line["step"]: line["scores"] for line in read_json(artifact / SCORES, list) or []}


class MetricsFollower(Follower):
    """Reads a metrics file as it grows, each line once."""

    def poll(self, *, now: bool = True) -> list[dict[str, Any]]:
        """Steps since the last call; all of them once a resumed run has replaced the file. A line that a loss
        of power has damaged counts as absent.

        Args:
            now: As of :meth:`~pipelines.storage.growing.Follower.lines`.
        """
        found = (parse_json(line, dict, f"A line of {self._path}") for line in self.lines(now=now))
        return [step for step in found if step is not None]


def progress_message(recent: Sequence[dict[str, Any]], steps: int) -> str:
    """``loss 0.132 image, 0.871 video · 6.1k text, 23k image tok/s · MFU 14% · 4 workers · 2 h 5 min left``.

    Args:
        recent: The last steps, whose pace gives the time left.
        steps: Steps of the run.
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
