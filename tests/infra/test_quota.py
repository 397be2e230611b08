"""A container's quotas, by files as the kernel writes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from infra import quota


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_quota_of_cpus_is_read_in_both_versions(tmp_path: Path, files: dict[str, str], cpus: float | None):
    assert quota.cpu_quota(write(tmp_path, files), tmp_path / "none") == cpus


def test_a_container_has_no_more_cpus_than_its_quota_and_at_least_one(tmp_path: Path):
    nothing = tmp_path / "none"
    alone = quota.usable_cpus(nothing, nothing)
    assert quota.usable_cpus(write(tmp_path, {"cpu.max": "10000 100000"}), nothing) == 1
    assert quota.usable_cpus(write(tmp_path, {"cpu.max": "6400000 100000"}), nothing) == alone


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/slurm/job\n", {"slurm/job/cpu.max": "max 100000", "slurm/cpu.max": "300000 100000"}, 3.0),
        ("0::/slurm/job\n", {"slurm/job/cpu.max": "100000 100000", "slurm/cpu.max": "300000 100000"}, 1.0),
        (
            "7:memory:/a\n3:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            2.5,
        ),
    ],
)
def test_the_tightest_of_the_groups_that_a_process_is_in_counts(
    tmp_path: Path, own: str, files: dict[str, str], cpus: float
):
    write(tmp_path, {"self": own, **files})
    assert quota.cpu_quota(tmp_path, tmp_path / "self") == cpus


def test_libraries_start_no_more_threads_than_the_quota_allows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quota, "cpu_quota", lambda *_: 0.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quota.limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS") == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    quota.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3", "what was given stays"


def test_without_a_quota_libraries_choose_for_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quota, "cpu_quota", lambda *_: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quota.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "2147483648\n"}, 2**31),
        ({"memory.max": "max\n"}, sys.maxsize),
        ({"memory/memory.limit_in_bytes": "1048576\n"}, 2**20),
        ({}, sys.maxsize),
    ],
)
def test_a_limit_of_memory_is_read_in_both_versions(tmp_path: Path, files: dict[str, str], limit: int):
    assert quota.memory_limit(write(tmp_path, files), tmp_path / "none") == limit
