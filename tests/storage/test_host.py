"""What this machine keeps for a store on S3: session files, and bounded copies of models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipelines.storage import host
from pipelines.storage.host import cached_copy, session_folder
from tests.support.s3 import flaky


def fill(folder, **files: str) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)


def test_a_local_folder_is_given_as_it_is(tmp_path: Path):
    with cached_copy(tmp_path, "") as folder:
        assert folder == tmp_path


def test_one_copy_serves_all_processes_of_a_machine_until_the_files_change(s3_server, s3_folder):
    fill(s3_folder / "model", config="1", weights="w" * 1000)
    found = []

    def use() -> None:
        with cached_copy(str(proxy.through(s3_folder / "model")), "first") as folder:
            found.append((folder, {path.name: path.read_text() for path in folder.iterdir()}))

    with flaky(s3_server) as proxy:
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [path for method, path, _ in proxy.requests if method == "GET"].count(
            f"/casa-tests/{s3_folder.key}/model/weights"
        ) == 1
    assert [files for _, files in found] == [{"config": "1", "weights": "w" * 1000}] * 4
    assert len({folder for folder, _ in found}) == 1
    fill(s3_folder / "model", config="2")
    with cached_copy(s3_folder / "model", "second") as folder:  # a replica, as long as it runs
        assert (folder / "config").read_text() == "2"
        reader = threading.Thread(target=lambda: cached_copy(s3_folder / "model", "second").__enter__())
        reader.start()
        reader.join(30)
        assert not reader.is_alive(), "a second user does not wait for the first to end"


def test_copies_beyond_the_bound_go_unless_they_are_in_use(s3_folder, monkeypatch):
    monkeypatch.setattr(host, "CACHE_BYTES", 2500)
    for name in "abc":
        fill(s3_folder / name, weights=name * 1000)
    with cached_copy(s3_folder / "a", "") as used:
        with cached_copy(s3_folder / "b", "") as unused:
            pass
        with cached_copy(s3_folder / "c", "") as newest:
            assert (used / "weights").read_text() == "a" * 1000
            assert not unused.exists()
            assert (newest / "weights").is_file()


def test_a_copy_that_was_cut_short_is_made_again(s3_folder, monkeypatch):
    fill(s3_folder / "model", config="1", weights="w" * 10)

    def cut(source, target: Path) -> None:
        target.mkdir()
        (target / "config").write_text("1")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(host, "copy_tree", cut)
        with pytest.raises(KeyboardInterrupt), cached_copy(s3_folder / "model", ""):
            pytest.fail("it is not whole")
    with cached_copy(s3_folder / "model", "") as folder:
        assert {path.name for path in folder.iterdir()} == {"config", "weights"}


def test_session_files_of_a_store_elsewhere_stay_on_this_machine(tmp_path: Path, monkeypatch, s3_folder):
    assert session_folder(tmp_path) == tmp_path / "session"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    ours, theirs = session_folder(s3_folder), session_folder(s3_folder / "other")
    assert ours != theirs
    assert ours.parent == theirs.parent == tmp_path / "state" / "casa"
