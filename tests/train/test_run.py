"""How Ray Train is asked for workers."""

from __future__ import annotations

import pytest

from casa_core.errors import ConfigError
from pipelines.train.run import uses_gpus, worker_environment


@pytest.mark.parametrize(
    ("device", "there", "fewest", "expected"),
    [
        ("auto", 0, 2, False),
        ("auto", 64, 64, True),
        ("auto", 65, 64, True),
        ("gpu", 0, 64, True),
        ("gpu", 63, 64, True),
        ("cpu", 64, 64, False),
        ("cpu", 1, 2, False),
    ],
)
def test_gpus_are_used_where_there_are_some(device: str, there: int, fewest: int, expected: bool):
    assert uses_gpus(device, there, fewest) is expected  # pyright: ignore[reportArgumentType]


def test_a_cluster_that_lacks_a_gpu_does_not_train_on_cpus_in_silence():
    with pytest.raises(
        ConfigError, match="asks for 64 workers with one GPU each, and the cluster has 63"
    ) as caught:
        uses_gpus("auto", 63, 64)
    assert "where.train.device" in str(caught.value)


def test_workers_without_a_gpu_see_none():
    assert worker_environment(gpus=False)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(gpus=True)


def test_a_cpu_workers_threads_sleep_while_they_wait_unless_the_user_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert worker_environment(gpus=False)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert worker_environment(gpus=False)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "OMP_WAIT_POLICY" not in worker_environment(gpus=True)
