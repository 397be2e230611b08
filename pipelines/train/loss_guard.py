"""Stops a run whose loss or gradient is not finite, or whose loss jumps, and names the worst samples."""

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
"""Steps of a kind whose median loss is the usual one."""
WARM_UP = 50
"""Steps of a kind before a jump is looked for."""
NAMED = 5
"""Samples that an error names."""


class LossGuard:
    """Checks each step's loss before the update, and the gradient's norm after it.

    Every worker has one, and all see the same losses, so that they stop together.

    Args:
        spike_nats: How far a loss may lie above the median of the last losses of its kind; 0: no limit.
        world_size: Number of workers.
    """

    def __init__(self, spike_nats: float, world_size: int) -> None:
        self._spike_nats, self._world_size = spike_nats, world_size
        self._losses: dict[str, deque[float]] = {}

    def check_loss(self, step: int, kind: str, totals: StepTotals) -> None:
        """Check the loss before the update, so that a bad one never reaches the weights.

        Args:
            step: The step, from 1.
            kind: ``image`` or ``video``.
            totals: The step's losses.

        Raises:
            TrainingError: If the loss is not finite, or has jumped; names the samples of highest loss.
        """
        if not math.isfinite(totals.loss):
            self._stop(f"The loss of step {step} is {totals.loss}.", totals)
        before = self._losses.setdefault(kind, deque(maxlen=WINDOW))
        if self._spike_nats and len(before) >= WARM_UP:
            usual = median(before)
            if totals.loss > usual + self._spike_nats:
                what = f"The loss of step {step} jumped to {totals.loss:.2f}, from about {usual:.2f}."
                self._stop(what, totals)
        before.append(totals.loss)

    def check_norm(self, step: int, norm: float, totals: StepTotals) -> None:
        """Check the gradient's norm after the update, before anything is saved.

        Raises:
            TrainingError: If the norm is not finite though the loss was.
        """
        if not math.isfinite(norm):
            what = f"The gradient of step {step} is {norm}, with a loss of {totals.loss:.3f}."
            self._stop(what, totals)

    def _stop(self, what: str, totals: StepTotals) -> NoReturn:
        worst = self._worst(totals.documents)
        named = ", ".join(f"{document.source}/{document.sample_id} ({loss:.3g})" for document, loss in worst)
        raise TrainingError(
            what,
            f"Samples with the highest losses, in nats per answer token: {named or 'none has an answer'}.",
            "Look at them, and leave them out of their source if they are broken; otherwise lower "
            "train.learning_rate, or raise train.spike_nats for a jump that is real. The weights before this "
            "step are in the last checkpoint.",
        )

    def _worst(self, documents: Sequence[tuple[Document, float]]) -> list[tuple[Document, float]]:
        """The documents with the highest losses on any worker; NaN counts as highest."""
        order: Any = lambda entry: math.inf if math.isnan(entry[1]) else entry[1]  # noqa: E731
        own = sorted(documents, key=order, reverse=True)[:NAMED]
        gathered: list[Any] = [own]
        if self._world_size > 1:
            gathered = [None] * self._world_size
            dist.all_gather_object(gathered, own)
        return sorted((entry for part in gathered for entry in part), key=order, reverse=True)[:NAMED]
