"""What failures cost a run that goes on from checkpoints: expected time, and the best interval between them.

Failures are exponentially distributed with mean M, the mean time between failures of the whole cluster.

* Young, J. W.: A first order approximation to the optimum checkpoint interval. CACM 17 (1974).
* Daly, J. T.: A higher order estimate of the optimum checkpoint interval for restart dumps. FGCS 22 (2006).
"""

from __future__ import annotations

from math import exp, expm1, factorial, inf, sqrt

_LARGEST_EXPONENT = 700.0


def expected_seconds(
    work_s: float, interval_s: float, stall_s: float, restart_s: float, mtbf_s: float, lag_s: float = 0.0
) -> float:
    """Expected duration of work with checkpoints and failures; ``inf`` where it would never end.

    Daly (2006), equation 20: T = M e^(R/M) (e^((τ+δ)/M) − 1) T_s/τ, for failures that strike at any time,
    during checkpoints and restarts too. Saving in the background is not in Daly: a failure while a copy is
    still being written falls back to the one before. That is counted as so much longer a restart, R + lag.

    Args:
        work_s: T_s, the work without checkpoints and failures, s.
        interval_s: τ, work between two checkpoints, s.
        stall_s: δ, how long a checkpoint stops the work, s.
        restart_s: R, from a failure until work goes on, s.
        mtbf_s: M, mean time between failures of the whole cluster, s.
        lag_s: From the copy until the checkpoint is whole, while work goes on, s.
    """
    segment, restart = (interval_s + stall_s) / mtbf_s, (restart_s + lag_s) / mtbf_s
    if segment + restart > _LARGEST_EXPONENT:
        return inf
    # M e^(R/M) (e^x − 1), with the two exponentials multiplied out: both may be close to 1.
    return mtbf_s * (expm1(restart + segment) - expm1(restart)) * work_s / interval_s


def young_interval(stall_s: float, mtbf_s: float) -> float:
    """The interval with least expected time, to first order, s. Young (1974): τ = √(2δM)."""
    return sqrt(2 * stall_s * mtbf_s)


def daly_interval(stall_s: float, mtbf_s: float) -> float:
    """The interval with least expected time, to higher order, s.

    Daly (2006), equation 37: τ = √(2δM) [1 + ⅓ √(δ/2M) + ⅑ δ/2M] − δ where δ < 2M, otherwise M.
    """
    ratio = stall_s / (2 * mtbf_s)
    if ratio >= 1:
        return mtbf_s
    return young_interval(stall_s, mtbf_s) * (1 + sqrt(ratio) / 3 + ratio / 9) - stall_s


def more_failures_than(limit: int, expected: float) -> float:
    """Probability of more than ``limit`` failures where ``expected`` are to be expected (Poisson)."""
    return 1 - sum(exp(-expected) * expected**count / factorial(count) for count in range(limit + 1))
