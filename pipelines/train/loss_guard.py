"""What stops a run before it goes on for days with a model that has learnt nothing, naming the samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NoReturn

import torch.distributed as dist

from casa_core.errors import TrainingError
from pipelines.train.loader import Document
from pipelines.train.step import StepTotals

WINDOW = 100
WARM_UP = 50
NAMED = 5


class Guard:
    """Looks at each step's loss before the update, and at the gradient's norm after it.

    Every worker has one, and all see the same losses, so that they stop together.

    Args:
        spike_nats: How far a loss may lie above the median of the last losses of its kind; 0: any far.
        world_size: Number of workers.
    """

    def __init__(self, spike_nats: float, world_size: int) -> None:
        self._spike_nats, self._world_size = spike_nats, world_size
        self._losses: dict[str, deque[float]] = {}

    def check_loss(self, step: int, kind: str, totals: StepTotals) -> None:
        """Call it before the update, which then has not spoilt the weights.

        Args:
            step: From 1.
            kind: ``image`` or ``video``.
            totals: The step's.

        Raises:
            TrainingError: If the loss is no number, or has jumped: with the samples of the highest losses.
        """
        if not math.isfinite(totals.loss):
            self._stop(f"the loss of step {step} is {totals.loss}", totals)
        before = self._losses.setdefault(kind, deque(maxlen=WINDOW))
        if self._spike_nats and len(before) >= WARM_UP:
            usual = median(before)
            if totals.loss > usual + self._spike_nats:
                what = f"the loss of step {step} jumped to {totals.loss:.2f}, from about {usual:.2f}"
                self._stop(what, totals)
        before.append(totals.loss)

    def check_norm(self, step: int, norm: float, totals: StepTotals) -> None:
        """Call it after the update, before anything is saved.

        Raises:
            TrainingError: If the gradient was no number though the loss was one.
        """
        if not math.isfinite(norm):
            what = f"the gradient of step {step} is {norm}, with a loss of {totals.loss:.3f}"
            self._stop(what, totals)

    def _stop(self, what: str, totals: StepTotals) -> NoReturn:
        worst = self._worst(totals.documents)
        named = ", ".join(f"{document.source}/{document.sample_id} ({loss:.3g})" for document, loss in worst)
        raise TrainingError(
            what,
            f"the samples with the highest losses, in nats an answer token: {named or 'none has an answer'}",
            "look at them, and leave them out of their source if they are broken; otherwise lower "
            "train.learning_rate, or raise train.spike_nats for a jump that is real. The weights before this "
            "step are in the last checkpoint",
        )

    def _worst(self, documents: Sequence[tuple[Document, float]]) -> list[tuple[Document, float]]:
        """The highest losses on any worker; what is no number is highest."""
        order: Any = lambda entry: math.inf if math.isnan(entry[1]) else entry[1]  # noqa: E731
        own = sorted(documents, key=order, reverse=True)[:NAMED]
        everyone: list[Any] = [own]
        if self._world_size > 1:
            everyone = [None] * self._world_size
            dist.all_gather_object(everyone, own)
        return sorted((entry for part in everyone for entry in part), key=order, reverse=True)[:NAMED]
