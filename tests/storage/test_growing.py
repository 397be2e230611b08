"""Growing files and locks, on a disk and on a real S3 server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casa_core.errors import ClusterError
from pipelines.storage import growing, lock
from pipelines.storage.growing import Follower, append_to, finish, last_bytes
from pipelines.storage.lock import locked
from pipelines.storage.uri import Folder
from tests.support.paths import ROOT
from tests.support.s3 import flaky


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return tmp_path if request.param == "disk" else request.getfixturevalue("s3_folder")


def test_what_is_appended_is_read_once_line_by_line(folder: Folder):
    path = folder / "a.log"
    tail = Follower(path)
    assert tail.lines() == []
    log = append_to(path)
    log.write(b"one\ntw")
    log.flush()
    assert tail.lines() == [b"one"]
    assert tail.lines() == []
    log.write(b"o\nthree\n")
    log.close()
    assert tail.lines() == [b"two", b"three"]
    again = append_to(path)  # by another process, after the first has ended
    again.write(b"four\n")
    again.close()
    assert tail.lines() == [b"four"]
    assert Follower(path).lines() == [b"one", b"two", b"three", b"four"]
    assert last_bytes(path, 11) == b"three\nfour\n"
    finish(path)
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert Follower(path).lines() == [b"one", b"two", b"three", b"four"]
    assert last_bytes(folder / "none.log", 10) == b""


def test_a_replaced_file_is_read_from_its_beginning(folder: Folder):
    path = folder / "steps.jsonl"
    log, tail = append_to(path), Follower(path)
    log.write(b"1\n2\n3\nhal")
    log.close()
    assert tail.lines() == [b"1", b"2", b"3"]
    resumed = append_to(path, b"1\n2\n")
    resumed.write(b"3 again\n")
    resumed.close()
    assert tail.lines() == [b"1", b"2", b"3 again"]
    assert Follower(path).lines() == [b"1", b"2", b"3 again"]


def test_a_long_file_on_s3_is_put_part_by_part_and_never_twice_whole(s3_server, s3_folder, monkeypatch):
    monkeypatch.setattr(growing, "PART_BYTES", 1000)
    lines = [f"line {number:05d}\n".encode() for number in range(700)]
    with flaky(s3_server, fail_every=10) as proxy:
        path = proxy.through(s3_folder) / "a.log"
        log, tail, read = append_to(path), Follower(path), []
        for start in range(0, len(lines), 25):
            log.write(b"".join(lines[start : start + 25]))
            log.flush()
            read += tail.lines()
        log.close()
        assert proxy.failed > 0
    assert read == [line.rstrip() for line in lines]
    parts = list((s3_folder / ".a.log").iterdir())
    assert len(parts) == len(b"".join(lines)) // 1100  # four writes of 275 bytes fill one
    assert last_bytes(s3_folder / "a.log", 2000) == b"".join(lines)[-2000:]


def test_what_was_written_is_there_soon_without_a_flush(s3_folder, monkeypatch):
    monkeypatch.setattr(growing, "INTERVAL_S", 0.05)
    log = append_to(s3_folder / "a.log")
    log.write(b"soon\n")
    tail, deadline = Follower(s3_folder / "a.log"), time.monotonic() + 20
    while not (lines := tail.lines()):
        assert time.monotonic() < deadline
    assert lines == [b"soon"]
    log.close()


def test_one_of_many_holds_a_lock_and_the_next_one_follows_at_once(folder: Folder):
    inside, most = 0, 0
    guard = threading.Lock()

    def hold() -> None:
        nonlocal inside, most
        with locked(folder / "a.write", wait_s=60):
            with guard:
                inside, most = inside + 1, max(most, inside + 1)
            time.sleep(0.05)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    held = pytest.raises(ClusterError, match=r"still holds a\.write")
    with locked(folder / "a.write", wait_s=5), held, locked(folder / "a.write", wait_s=0.2):
        pytest.fail("two hold it")


def test_a_lease_survives_a_bad_connection(s3_server, s3_folder, monkeypatch):
    """A lost answer to the creation of the lease does not make its holder wait for itself."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with flaky(s3_server, fail_every=3) as proxy:
        for _ in range(4):
            began = time.monotonic()
            with locked(proxy.through(s3_folder) / "a.write", wait_s=60):
                time.sleep(0.2)
            assert time.monotonic() - began < lock.STALE_S
        assert proxy.failed > 3
    assert len(list((s3_folder / "a.write").iterdir())) == 1


HOLDER = """
import sys, time
from pipelines.storage import lock
from pipelines.storage.uri import open_folder
lock.BEAT_S = 0.1
real, skew = time.time, float(sys.argv[2])
time.time = lambda: real() + skew
def lost():
    print("lost", flush=True)
with lock.locked(open_folder(sys.argv[1]), wait_s=30, lost=lost):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(s3_folder, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease ``a.write``; its clock goes wrong by the parameter, seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(s3_folder / "a.write"), str(getattr(request, "param", 0))],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("holder", [-86400, 86400], ids=["a day behind", "a day ahead"], indirect=True)
def test_a_lease_is_not_taken_from_a_holder_whose_clock_is_wrong(s3_folder, holder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    with pytest.raises(ClusterError), locked(s3_folder / "a.write", wait_s=2.0):
        pytest.fail("it beats, so it is held")
    holder.kill()
    with locked(s3_folder / "a.write", wait_s=20):
        pass


def test_a_killed_holder_is_succeeded_and_a_suspended_one_is_told(s3_folder, holder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 1.5)
    with pytest.raises(ClusterError), locked(s3_folder / "a.write", wait_s=2.5):
        pytest.fail("it beats, so it is held")
    holder.send_signal(signal.SIGSTOP)
    with locked(s3_folder / "a.write", wait_s=20):
        holder.send_signal(signal.SIGCONT)
        assert holder.stdout.readline() == "lost\n"
        holder.kill()
