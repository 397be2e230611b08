"""Trackers that a run's metrics go to besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Rank 0 writes to them in a thread of its own, because a tracker may wait for a server. One that cannot be
opened stops the run before its first step; one that fails later is closed with a warning, and the run goes
on without it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from casa_core.errors import ConfigError
from pipelines.recipe.where import TrackerName
from pipelines.storage.host import session_folder
from pipelines.storage.transfer import copy_tree
from pipelines.storage.uri import open_folder
from pipelines.train.metrics import StepMetrics

PROJECT = "casa"
TAG = "casa.fingerprint"
MAX_WAITING = 10_000
"""Steps that are queued for a slow tracker; further ones are dropped."""
FLUSH_SECONDS, CLOSE_SECONDS = 10.0, 60.0
UPLOAD_SECONDS, EVENT_BYTES = 30.0, 1 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run's identity for trackers.

    Attributes:
        name: Name that trackers show.
        key: The train stage's fingerprint: a resumed run has the same.
        folder: Folder of their files, seen by every node: a path or an ``s3://`` URI.
        config: Settings that decide the result, for tables that compare runs.
    """

    name: str
    key: str
    folder: str
    config: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """An open run of one tracking library."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step, from 1."""
        ...

    def flush(self) -> None:
        """Store or send everything written so far."""
        ...

    def close(self) -> None:
        """Send the rest, and end the run."""
        ...


def scalars(metrics: StepMetrics) -> dict[str, float]:
    """Name → number of a step's metrics; trackers group by the part before the slash."""
    seconds = max(metrics.seconds, 1e-9)
    values: dict[str, float | None] = {
        f"loss/{metrics.kind}": metrics.loss,
        **{f"loss_by_source/{source}": loss for source, loss in metrics.source_losses.items()},
        **{f"held_out_loss/{kind}": loss for kind, loss in (metrics.held_out_loss or {}).items()},
        "optimizer/gradient_norm": metrics.grad_norm,
        "optimizer/learning_rate": metrics.learning_rate,
        "optimizer/existing_learning_rate": metrics.existing_learning_rate,
        "tokens_per_second/text": metrics.text_tokens / seconds,
        "tokens_per_second/image": metrics.image_tokens / seconds,
        "tokens_per_second/trained": metrics.trained_tokens / seconds,
        f"fill/{metrics.kind}_text": metrics.text_fill,
        f"fill/{metrics.kind}_image": metrics.image_fill,
        "speed/step_seconds": metrics.seconds,
        "speed/loader_wait_share": metrics.loader_wait_s / seconds,
        "speed/tflops_per_worker": metrics.tflops,
        "speed/mfu": metrics.mfu,
        "speed/workers": metrics.workers,
        "speed/peak_memory_gib": metrics.memory_gib,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


class Trackers:
    """The trackers of a run, written to in a thread.

    Args:
        names: Which trackers.
        run: The run's identity.
        steps_done: Steps that an earlier attempt completed: later ones are dropped or overwritten.
        scores: Scores of held-out questions that are known so far, by step: those that are new go to the
            trackers at every flush and at the end.

    Raises:
        ConfigError: If a tracker is not installed, or does not answer.
    """

    def __init__(
        self,
        names: Sequence[TrackerName],
        run: TrackedRun,
        *,
        steps_done: int = 0,
        scores: Callable[[], Mapping[int, Mapping[str, float]]] = dict,
    ) -> None:
        self._scores, self._sent = scores, set[int]()
        self._open: dict[str, Tracker] = {}
        self._work: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._serve, name="trackers", daemon=True)
        self._dropped = 0
        for name in names:
            try:
                self._open[name] = OPENERS[name](run, steps_done)
            except ImportError as error:
                raise ConfigError(
                    f"`where.train.track` names {name}, which cannot be imported here: {error}.",
                    "Every node that may run the first training worker needs it.",
                    f"Run `pip install 'casa[track]'`, or take {name} out of where.train.track.",
                ) from error
            except Exception as error:  # these libraries raise whatever they like
                raise ConfigError(
                    f"{name} cannot be opened for run {run.name}.",
                    f"{type(error).__name__}: {error}.",
                    f"See its settings (docs/training.md), or take {name} out of where.train.track.",
                ) from error
        self._thread.start()

    def write(self, metrics: StepMetrics) -> None:
        """Queue a step's numbers for every tracker that still works, without waiting."""
        values = scalars(metrics)
        if not self._put(partial(self._each, lambda tracker: tracker.write(metrics.step, values)), 0.0):
            self._dropped += 1

    def flush(self) -> None:
        """Store everything written so far, because a run resumed from a checkpoint writes only later steps.

        Waits for at most :data:`FLUSH_SECONDS`.
        """
        self._put(self._send_scores, 0.0)
        done = threading.Event()
        if self._put(partial(self._each, lambda tracker: tracker.flush()), 0.0) and self._put(done.set, 0.0):
            done.wait(FLUSH_SECONDS)

    def close(self) -> None:
        """Send the rest and end the thread; does not wait for a tracker beyond :data:`CLOSE_SECONDS`."""
        self._put(self._send_scores, CLOSE_SECONDS)
        self._put(partial(self._each, lambda tracker: tracker.close()), CLOSE_SECONDS)
        self._put(None, CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._dropped or self._thread.is_alive():
            log.warning("Trackers were too slow and lack some steps; metrics.jsonl has every one.")

    def _send_scores(self) -> None:
        for step, scores in self._scores().items():
            if step not in self._sent:
                self._sent.add(step)
                values = {f"held_out_score/{name}": value for name, value in scores.items()}
                self._each(lambda tracker, at=step, own=values: tracker.write(at, own))

    def _put(self, work: Callable[[], object] | None, seconds: float) -> bool:
        """Queue it; whether there was room within that time."""
        try:
            self._work.put(work, block=seconds > 0, timeout=seconds)
        except queue.Full:
            return False
        return True

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # training is worth more than a curve
                log.warning("%s fails and is given up; metrics.jsonl has every step: %s", name, error)
                del self._open[name]


class TensorBoard:
    """Event files below ``folder``; a resumed run replaces the steps that it takes again.

    On S3 they are written to a temporary folder and uploaded at each checkpoint and every ``UPLOAD_SECONDS``;
    a file of ``EVENT_BYTES`` is followed by another, so that no long one is uploaded again and again.
    """

    def __init__(self, run: TrackedRun, steps_done: int) -> None:
        self._folder = open_folder(run.folder) / f"{run.name}-{run.key[:8]}"
        self._scratch = None if isinstance(self._folder, Path) else TemporaryDirectory(prefix="casa-")
        self._local = Path(str(self._folder) if self._scratch is None else self._scratch.name)
        self._steps_done, self._files = steps_done, 0
        self._uploaded_at = time.monotonic()
        self._writer = self._open(steps_done + 1 if steps_done else None)

    def _open(self, purge: int | None = None) -> Any:
        from tensorboardX import SummaryWriter

        # Default names have seconds, and two files may begin in the same one.
        suffix = f".after-{self._steps_done}" + (f"-{self._files}" if self._files else "")
        self._files += 1
        return SummaryWriter(str(self._local), purge_step=purge, flush_secs=10, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._scratch is not None and time.monotonic() - self._uploaded_at > UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        if self._scratch is None:
            return
        copy_tree(self._local, self._folder)
        self._uploaded_at = time.monotonic()
        if sum(path.stat().st_size for path in self._local.iterdir()) > EVENT_BYTES:
            self._writer.close()
            copy_tree(self._local, self._folder)
            for path in self._local.iterdir():
                path.unlink()
            self._writer = self._open()

    def close(self) -> None:
        self._writer.close()
        if self._scratch is not None:
            copy_tree(self._local, self._folder)
            self._scratch.cleanup()


class WeightsAndBiases:
    """A W&B run; W&B itself reads WANDB_PROJECT, WANDB_API_KEY, WANDB_MODE and the like."""

    def __init__(self, run: TrackedRun, steps_done: int) -> None:
        import wandb

        folder = open_folder(run.folder)
        if not isinstance(folder, Path):  # it writes to disks alone, and sends what it writes to its server
            folder = session_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.key[:16],
            resume="allow",
            dir=str(folder),
            config=dict(run.config),
            settings=wandb.Settings(console="off"),
        )
        # Steps that a resumed run does again have the same numbers; W&B's own count would drop them.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def flush(self) -> None:
        """Nothing to do: W&B's own process has the steps already."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run at MLFLOW_TRACKING_URI, in experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: TrackedRun, steps_done: int) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.key}'")
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.key}).info.run_id
        for key, value in run.config.items():
            self._client.log_param(self._run, key, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def flush(self) -> None:
        """Nothing to do: the server has the steps already."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


OPENERS: dict[TrackerName, Callable[[TrackedRun, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
