"""The errors that end a run: a stage that failed for good or was stopped, and a run that was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from casa_core.errors import CasaError, ClusterError

if TYPE_CHECKING:
    from pipelines.dag.records import Outcome


class StageFailed(CasaError, RuntimeError):
    """A stage that failed for good; carries the end of its log."""


def stage_failed(
    stage: str, reason: str, outcome: Outcome | None, log: Sequence[str], *, attempts: int
) -> StageFailed:
    """The failure of a stage for good.

    Args:
        stage: Its name.
        reason: Why its last attempt failed.
        outcome: That attempt's, where it left one.
        log: The end of its log; empty where the error explains itself.
        attempts: How often it was tried.
    """
    causes = [reason]
    if outcome is not None and outcome.why:
        causes.append(outcome.why)
    if log:
        causes += ["The end of its log:", *(f"    {line}" for line in log)]
    remedy = outcome.remedy if outcome is not None else ""
    remedy = remedy or f"`casa logs {stage}` shows all of it; run again to resume."
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return StageFailed(f"Stage {stage} failed{tried}.", "\n".join(causes), remedy)


def run_stopped() -> ClusterError:
    """The end of a run that `casa stop` was called for."""
    return ClusterError(
        "The run was stopped.",
        "`casa stop` ended its jobs, or its local Ray head.",
        "`casa run` goes on from here; finished stages and checkpoints are kept.",
    )


def stage_stopped(stage: str, message: str) -> StageFailed:
    """The end of a stage whose job was stopped; ``message`` is Ray's."""
    return StageFailed(
        f"Stage {stage} was stopped.",
        f"Its job was ended through Ray's job API or dashboard: {message.rstrip('.')}.",
        "Run again to go on from here; finished stages and checkpoints are kept.",
    )
