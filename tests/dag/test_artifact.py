"""Artifacts: whole or absent, never half."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from casa_core.errors import StoreError
from pipelines.dag import artifact
from tests.support.paths import ROOT


def make(folder: Path, **files: str) -> dict:
    artifact.begin(folder)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return artifact.commit(folder, {"fingerprint": "f", "kind": "toy"}, {"n": 1}, {"seconds": 1.0})


def test_a_folder_without_a_manifest_does_not_exist(tmp_path: Path):
    artifact.begin(tmp_path / "a")
    (tmp_path / "a" / "data").write_text("half")
    assert artifact.read_manifest(tmp_path / "a") is None
    assert artifact.read_manifest(tmp_path / "never") is None


def test_a_manifest_lists_every_file_with_size_and_hash(tmp_path: Path):
    make(tmp_path / "a", one="1", deep__two="22")
    manifest = artifact.read_manifest(tmp_path / "a")
    assert manifest is not None
    expected = hashlib.sha256(b"22").hexdigest()
    assert manifest["files"].keys() == {"one", "deep/two"}
    assert manifest["files"]["deep/two"] == {"bytes": 2, "sha256": expected}
    assert manifest["summary"] == {"n": 1}
    assert artifact.verify(tmp_path / "a") == []


def test_the_content_digest_knows_files_and_nothing_of_time_or_place(tmp_path: Path):
    first = make(tmp_path / "a", one="1", two="2")["content_digest"]
    time.sleep(0.01)
    assert make(tmp_path / "b", two="2", one="1")["content_digest"] == first
    assert make(tmp_path / "c", one="1", two="3")["content_digest"] != first
    assert make(tmp_path / "d", one="1", three="2")["content_digest"] != first


@pytest.mark.parametrize(
    ("kind", "name"), [(k, name) for k, own in artifact.UNCOUNTED.items() for name in sorted(own)]
)
def test_files_of_times_are_in_the_manifest_and_not_in_the_content_digest(
    tmp_path: Path, kind: str, name: str
):
    digests = set()
    for folder, seconds in (("a", "1.0"), ("b", "2.0")):
        artifact.begin(tmp_path / folder)
        (tmp_path / folder / "data").write_text("the same")
        (tmp_path / folder / name).write_text(seconds)
        manifest = artifact.commit(tmp_path / folder, {"fingerprint": "f", "kind": kind}, {}, {})
        assert manifest["files"].keys() == {"data", name}
        digests.add(manifest["content_digest"])
    assert len(digests) == 1
    (tmp_path / "a" / name).write_text("3.0")
    assert [fault.kind for fault in artifact.verify(tmp_path / "a")] == ["altered"]
    artifact.begin(tmp_path / "b")
    (tmp_path / "b" / "data").write_text("other")
    other = artifact.commit(tmp_path / "b", {"fingerprint": "f", "kind": kind}, {}, {})
    assert other["content_digest"] not in digests


@pytest.mark.parametrize("damage", ["altered", "size", "missing", "added"])
def test_verify_finds_files_that_differ_from_the_manifest(tmp_path: Path, damage: str):
    make(tmp_path / "a", one="1", two="2")
    if damage == "altered":
        (tmp_path / "a" / "one").write_text("I")
    elif damage == "size":
        (tmp_path / "a" / "one").write_text("11")
    elif damage == "missing":
        (tmp_path / "a" / "one").unlink()
    else:
        (tmp_path / "a" / "three").write_text("3")
    (fault,) = artifact.verify(tmp_path / "a")
    assert (fault.kind, fault.file) == (damage, "three" if damage == "added" else "one")
    assert "altered" in fault.detail if damage == "size" else damage in fault.detail


def test_verify_refuses_a_folder_without_a_manifest(tmp_path: Path):
    with pytest.raises(StoreError, match="is not an artifact"):
        artifact.verify(tmp_path)


def test_beginning_again_takes_the_manifest_away_and_keeps_the_files(tmp_path: Path):
    make(tmp_path / "a", one="1")
    artifact.begin(tmp_path / "a")
    assert artifact.read_manifest(tmp_path / "a") is None
    assert (tmp_path / "a" / "one").read_text() == "1"


def test_links_are_refused_because_their_target_can_change(tmp_path: Path):
    artifact.begin(tmp_path / "a")
    (tmp_path / "a" / "link").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="plain files"):
        artifact.commit(tmp_path / "a", {}, {}, {})
    assert artifact.read_manifest(tmp_path / "a") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', "null"])
def test_a_damaged_manifest_is_reported_and_not_taken_for_a_missing_one(tmp_path: Path, text: str):
    (tmp_path / artifact.MANIFEST).write_text(text)
    with pytest.raises(StoreError, match="is not a manifest"):
        artifact.read_manifest(tmp_path)


WRITER = """
import sys
from pathlib import Path
from pipelines.dag import artifact
folder = Path(sys.argv[1])
print("ready", flush=True)
for turn in range(10_000):
    artifact.begin(folder)
    for number in range(40):
        (folder / f"{number}.bin").write_bytes(str(turn).encode() * 5000)
    artifact.commit(folder, {"turn": turn}, {}, {})
"""


def kill_while_writing(folder: Path, delays: list[float]) -> int:
    """Kill a writer that makes an artifact over and over; returns how often it was left whole."""
    whole = 0
    for delay in delays:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if artifact.read_manifest(folder) is not None:
            assert artifact.verify(folder) == []
            whole += 1
    return whole


def test_killed_at_any_moment_an_artifact_is_whole_or_absent(tmp_path: Path):
    kill_while_writing(tmp_path / "a", [0.0, 0.003, 0.011, 0.023, 0.041, 0.067])


@pytest.mark.slow
def test_killed_at_two_hundred_moments_an_artifact_is_whole_or_absent(tmp_path: Path):
    whole = kill_while_writing(tmp_path / "a", [0.0007 * turn for turn in range(200)])
    assert 0 < whole < 200  # Both outcomes were seen.
