"""Disks that are full, read-only or broken: nothing half-written stays, and a sentence says what to do."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError, StoreError
from pipelines.cli.app import app
from pipelines.dag import job_main
from pipelines.dag.plan import plan
from pipelines.dag.records import JobSpec, Records
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.errors import disk_error
from tests.support.dag.runner import toy


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def test_a_full_disk_is_named_and_the_half_written_file_is_gone(small_disk):
    write_whole(small_disk / "file", b"before")

    def overfill() -> None:
        with create(small_disk / "file") as out:
            for _ in range(64):
                out.write(bytes(1 << 16))

    with pytest.raises(StoreError, match="the disk is full") as caught:
        overfill()
    assert str(small_disk / "file") in caught.value.what
    assert f"of 1 MiB are free on the disk at {small_disk}" in caught.value.why
    assert "where.store" in caught.value.remedy
    assert [(path.name, path.read_bytes()) for path in small_disk.iterdir()] == [("file", b"before")]


def test_a_small_file_that_no_longer_fits_when_it_is_closed_leaves_nothing(small_disk):
    """Python writes few bytes when the file is closed, and fails to close it twice."""
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(StoreError, match="the disk is full"):
        write_whole(small_disk / "file", b"a few bytes")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_read_only_store_is_named(small_disk):
    make_read_only(small_disk)
    with pytest.raises(StoreError, match="mounted read-only") as caught:
        write_whole(small_disk / "file", "text")
    assert str(small_disk) in caught.value.what


def test_what_goes_wrong_inside_a_block_is_no_fault_of_its_disk(tmp_path):

    def fail(error: Exception) -> None:
        with create(tmp_path / "file") as out:
            out.write(b"1")
            raise error

    for error in (FileNotFoundError("other"), KeyError("x"), PermissionError(errno.EACCES, "no", "other")):
        with pytest.raises(type(error)):
            fail(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", ["store", "plain", "arrow", "safetensors"])
def test_a_stage_that_fills_its_disk_ends_with_a_sentence(small_disk, writer, capsys):
    (stage,) = plan([toy("numbers", "fill_disk", writer=writer)], small_disk, {"fill_disk": "1"})
    Records(small_disk).prepare()
    outcome = job_main.run_job(JobSpec.of(stage, small_disk, 1))
    assert (outcome.ok, outcome.explained, outcome.kind) == (False, True, "error")
    assert "the disk is full" in outcome.what
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "Traceback" not in said


def test_the_command_line_says_that_a_store_is_read_only(small_disk):
    make_read_only(small_disk)
    done = CliRunner().invoke(app, ["run", "quickstart", "--set", f"where.store={small_disk / 'store'}"])
    assert done.exit_code == 2
    assert "mounted read-only" in done.output
    assert "Traceback" not in done.output


def numbered(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "input/output"),
        (errno.ESTALE, "remounted"),
    ],
)
def test_each_way_in_which_a_disk_refuses_has_its_sentence_and_travels(number, said, tmp_path):
    found = disk_error(numbered(number, str(tmp_path / "deep" / "file")))
    assert found is not None
    assert said in found.what
    assert str(tmp_path / "deep" / "file") in found.what
    assert "MiB are free" in found.why
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def by_a_worker() -> BaseException:
    from ray.exceptions import RayTaskError

    return RayTaskError("write", "traceback", numbered(errno.ENOSPC, "/data/x")).as_instanceof_cause()


def by_cause() -> BaseException:
    try:
        raise RuntimeError("the worker group failed") from numbered(errno.ENOSPC, "/data/x")
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("raised", [by_a_worker, by_cause])
def test_a_disk_that_fills_up_elsewhere_is_found_beneath_other_errors(raised: Callable[[], BaseException]):
    found = disk_error(raised())
    assert found is not None
    assert found.what == "/data/x cannot be used: the disk is full."


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "none"),
        ValueError("28"),
        io.UnsupportedOperation("seek"),
        ConfigError("errno 28"),
    ],
)
def test_other_errors_are_no_fault_of_a_disk(error):
    assert disk_error(error) is None
