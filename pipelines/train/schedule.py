"""The learning rate of each step."""

from __future__ import annotations


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Linear warm-up, constant, linear decay to zero (paper, B.1): the factor on the peak learning rate.

    Args:
        step: From 0.
        steps: Steps of the run.
        warmup_steps: The factor reaches 1 at the last of these.
        decay_steps: It falls over these, the run's last ones; the step after the run would be at 0.
    """
    warm = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    left = (steps - step) / decay_steps if steps - step < decay_steps else 1.0
    return min(warm, left)
