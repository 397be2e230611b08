"""A process is told from others of the same id, whatever the clock does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import local_ray
from infra.local_ray import RaySession
from infra.processes import is_alive, start_mark


@pytest.fixture
def stepped_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil after the clock was set forward by an hour: the kernel then states a later time of its boot."""
    fake = tmp_path / "proc"
    fake.mkdir()
    for entry in os.scandir("/proc"):
        if entry.name not in ("stat", "self", "thread-self"):
            (fake / entry.name).symlink_to(entry.path)
    lines = Path("/proc/stat").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + 3600}" if line.startswith("btime") else line for line in lines]
    (fake / "stat").write_text("\n".join(moved) + "\n")
    before = psutil.Process(os.getpid()).create_time()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(fake))
    assert psutil.Process(os.getpid()).create_time() - before == pytest.approx(3600, abs=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a start's time of day does not move")
def test_a_healthy_head_is_found_after_a_step_of_the_clock(
    ray_folder: Path, ray_head: RaySession, stepped_clock: None
):
    assert local_ray.find(ray_folder) == ray_head
    assert local_ray.start(ray_folder, num_cpus=4, object_store_mb=128) == ray_head


def test_a_process_is_not_taken_for_another_of_its_id():
    first, second = (subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in "ab")
    with first, second:
        assert is_alive(first.pid, start_mark(first.pid))
        assert is_alive(first.pid, start_mark(first.pid)), "the mark is the same whenever it is read"
        assert not is_alive(first.pid, "0 0")
        mark = start_mark(second.pid)
        second.kill()
        second.wait()
        assert not is_alive(second.pid, mark)
        with pytest.raises(psutil.NoSuchProcess):
            start_mark(second.pid)
        first.kill()
