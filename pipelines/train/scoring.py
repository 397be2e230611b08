"""Scores a model while it trains: each snapshot answers held-out questions in a process of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from casa_core.errors import CasaError
from pipelines.evaluate.held_out.scoring import score_model
from pipelines.storage.uri import open_folder
from pipelines.train.settings import TrainJob
from pipelines.train.snapshots import Snapshots

POLL_SECONDS = 1.0
log = logging.getLogger(__name__)


class Scoring:
    """Context manager: scores snapshots as they come while its block runs, and the rest when it ends well.

    A snapshot that cannot be scored is reported and left out; training is worth more than a curve.

    Args:
        environment: Variables of the scoring process.
    """

    def __init__(self, job: TrainJob, environment: Mapping[str, str]) -> None:
        self._job, self._environment = job, environment
        self._snapshots = Snapshots(open_folder(job.checkpoints), open_folder(job.output))
        self._over, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._follow, name="train-scores", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = error is not None
        self._over.set()
        if not self._failed:
            self._thread.join()

    def _follow(self) -> None:
        left_out: set[int] = set()
        while not self._failed:
            over = self._over.wait(POLL_SECONDS)
            waiting = [step for step in self._snapshots.waiting() if step not in left_out]
            for step in waiting[:1]:
                try:
                    self._snapshots.scored(step, self._score(step))
                except CasaError as error:
                    log.warning("step %d is not scored: %s", step, " ".join(map(str, error.args[:2])))
                    left_out.add(step)
            if over and not waiting:
                return

    def _score(self, step: int) -> dict[str, float]:
        import ray
        from ray.exceptions import RayTaskError

        from pipelines.data.store.ray_data import original_error

        job, gpus = self._job, self._job.placement.scoring_gpus
        assert job.settings.evaluate is not None, "it is set where the model is scored"
        task: Any = ray.remote(score_model).options(
            num_cpus=1, num_gpus=gpus, runtime_env={"env_vars": dict(self._environment)}
        )
        sources = {name: open_folder(path) for name, path in job.sources.items()}
        most = job.settings.train.scored_questions
        try:
            return ray.get(task.remote(self._snapshots.folder(step), sources, job.settings.evaluate, most))
        except RayTaskError as error:
            raise original_error(error.cause) from error
