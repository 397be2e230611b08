"""Expected time with failures, against runs that are played through failure by failure."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest

from pipelines.cost.simulate.failures import (
    daly_interval,
    expected_seconds,
    more_failures_than,
    young_interval,
)

RUNS = 4000


def played(
    work: float, interval: float, stall: float, restart: float, mtbf: float, lag: float, seed: int = 0
) -> tuple[float, float]:
    """Mean duration of runs with exponential failures, and its standard error.

    A run computes, stops for a checkpoint after each interval, and goes on; a checkpoint counts from ``lag``
    seconds later on. A failure, at any moment, costs a restart, which may fail too, and all work since the
    newest checkpoint that counts.
    """
    rng = np.random.default_rng(seed)
    durations = []
    for _ in range(RUNS):
        clock, done, copied = 0.0, 0.0, []
        fails = rng.exponential(mtbf)
        while done < work:
            end = clock + interval + stall
            if fails >= end:
                clock, done = end, done + interval
                copied.append((clock + lag, done))
                continue
            clock = fails
            done = max((saved for whole, saved in copied if whole <= clock), default=0.0)
            copied = [(clock, done)]
            while (fails := clock + rng.exponential(mtbf)) < clock + restart:
                clock = fails
            clock += restart
        durations.append(clock)
    return float(np.mean(durations)), float(np.std(durations) / sqrt(RUNS))


@pytest.mark.parametrize(
    ("interval", "stall", "restart", "mtbf"),
    [(50.0, 2.0, 10.0, 400.0), (20.0, 5.0, 0.0, 100.0), (100.0, 1.0, 30.0, 150.0)],
)
def test_the_expected_time_is_the_mean_of_runs_that_are_played(interval, stall, restart, mtbf):
    mean, error = played(1000.0, interval, stall, restart, mtbf, lag=0.0)
    assert expected_seconds(1000.0, interval, stall, restart, mtbf) == pytest.approx(mean, abs=4 * error)


def test_a_checkpoint_that_is_written_in_the_background_loses_what_it_lasts():
    lag = 20.0
    mean, error = played(2000.0, 50.0, 2.0, 10.0, 400.0, lag)
    expected = expected_seconds(2000.0, 50.0, 2.0, 10.0, 400.0, lag)
    assert expected == pytest.approx(mean, rel=0.01, abs=4 * error)
    assert expected > expected_seconds(2000.0, 50.0, 2.0, 10.0, 400.0) + 4 * error


@pytest.mark.parametrize(("stall", "mtbf"), [(1.0, 1e4), (30.0, 3600.0), (60.0, 600.0)])
def test_no_interval_is_much_better_than_dalys(stall: float, mtbf: float):
    best = min(expected_seconds(1.0, t, stall, 60.0, mtbf) for t in np.geomspace(stall / 4, 10 * mtbf, 2000))
    assert expected_seconds(1.0, daly_interval(stall, mtbf), stall, 60.0, mtbf) == pytest.approx(
        best, rel=1e-3
    )


def test_young_and_daly_agree_where_checkpoints_are_short():
    assert young_interval(2.0, 900.0) == 60.0
    assert daly_interval(0.1, 1e7) == pytest.approx(young_interval(0.1, 1e7), rel=1e-3)
    assert daly_interval(500.0, 100.0) == 100.0


def test_without_failures_only_checkpoints_cost_time_and_with_too_many_it_never_ends():
    assert expected_seconds(1000.0, 100.0, 1.0, 60.0, 1e15) == pytest.approx(1010.0, rel=1e-3)
    assert expected_seconds(1000.0, 100.0, 1.0, 60.0, 0.1) == inf


def test_the_probability_of_more_failures_is_that_of_counting_them():
    counts = np.random.default_rng(0).poisson(2.5, 200_000)
    assert more_failures_than(3, 2.5) == pytest.approx(float((counts > 3).mean()), abs=0.004)
    assert more_failures_than(0, 0.0) == 0.0
