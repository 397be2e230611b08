"""Checkpoints: whole or not there, in the background, on a disk and on S3; what is kept, what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from casa_core.errors import ConfigError, StoreError
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import load_checkpoint
from pipelines.cli.app import app
from pipelines.storage import s3
from pipelines.storage.atomic import Output
from pipelines.storage.remote_path import RemotePath
from pipelines.train.checkpoint import save as checkpoint
from pipelines.train.checkpoint.export import export
from pipelines.train.checkpoint.resume import agreed_checkpoints, resume
from pipelines.train.checkpoint.save import COMPLETE, FROZEN_DIGEST, Checkpointer, list_checkpoints
from tests.support.paths import ROOT
from tests.support.train.engine import engine_of, small_processor, train
from tests.support.train.workers import finish, process_group, start_group


@pytest.fixture(scope="module")
def processor() -> CasaProcessor:
    return small_processor()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, processor: CasaProcessor) -> Iterator[list[Any]]:
    """Two engines of one model, with other weights; the tower is frozen."""
    with process_group(tmp_path_factory.mktemp("meeting")):
        yield [engine_of(processor, seed) for seed in (1, 2)]


def weights(engine: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.module.named_parameters()}


def saver(root: Any, **settings: Any) -> Checkpointer:
    given = {"background": False, "keep": 2, "keep_best": 1, **settings}
    return Checkpointer(root, rank=0, world_size=1, **given)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_another_process_goes_on_with_the_same_bits(engines: list[Any], processor: Any, tmp_path: Path):
    mine, other = engines
    saver(tmp_path).save(mine, processor, steps_done=7)
    assert not same(weights(mine), weights(other))
    assert resume(other, tmp_path, rank=0, world_size=1) == 7
    assert same(weights(mine), weights(other))
    train(mine, 5)
    train(other, 5)
    assert same(weights(mine), weights(other))


def test_a_save_in_the_background_is_of_the_moment_it_began(
    engines: list[Any], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine, other = engines
    running, proceed = threading.Event(), threading.Event()
    write = Output.write

    def slowly(self: Output, data: Any) -> int:
        if threading.current_thread().name == "checkpoint":
            running.set()
            assert proceed.wait(30)
        return write(self, data)

    monkeypatch.setattr(Output, "write", slowly)
    keeper = saver(tmp_path, background=True)
    before = weights(engine)
    keeper.save(engine, processor, steps_done=1)
    assert running.wait(30)
    train(engine, 9)
    assert not list_checkpoints(tmp_path)
    proceed.set()
    keeper.close()
    assert resume(other, tmp_path, rank=0, world_size=1) == 1
    assert same(weights(other), before)


def test_the_newest_are_kept_and_the_best(engines: list[Any], processor: Any, tmp_path: Path):
    keeper = saver(tmp_path, keep=2, keep_best=1)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 4.0)):
        keeper.save(engines[0], processor, steps_done=step, metric=loss)
    assert [saved.steps_done for saved in list_checkpoints(tmp_path)] == [20, 40, 50]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        f"step-{step:08d}" for step in (20, 40, 50)
    ]


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(
    engines: list[Any], processor: Any, tmp_path: Path
):
    keeper = saver(tmp_path)
    keeper.save(engines[0], processor, steps_done=10)
    killed = tmp_path / "step-00000020"
    killed.mkdir()
    (killed / "rank-00000-of-00001-deadbeef.safetensors").write_bytes(b"half")
    (killed / "rank-00000-deadbeef.json").write_text("{}")
    assert [saved.steps_done for saved in list_checkpoints(tmp_path)] == [10]
    keeper.save(engines[0], processor, steps_done=20)
    (saved,) = list_checkpoints(tmp_path)[1:]
    assert {path.name for path in killed.iterdir()} == {COMPLETE, saved.marks["files"][0]["file"]}


def spoiled(root: Path, how: str) -> None:
    saved = list_checkpoints(root)[-1]
    shard = root / saved.folder.name / saved.marks["files"][0]["file"]
    data = shard.read_bytes()
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(data[:-100])
    else:
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("how", "damage"),
    [("missing", "cannot be read"), ("truncated", "bytes"), ("altered", "another content")],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    engines: list[Any], processor: Any, tmp_path: Path, how: str, damage: str
):
    keeper = saver(tmp_path)
    keeper.save(engines[0], processor, steps_done=10)
    expected = weights(engines[0])
    train(engines[0], 3)
    keeper.save(engines[0], processor, steps_done=20)
    spoiled(tmp_path, how)
    with pytest.warns(UserWarning, match=rf"step-00000020 is passed over: .*{damage}"):
        assert resume(engines[1], tmp_path, rank=0, world_size=1) == 10
    assert same(weights(engines[1]), expected)


@pytest.mark.parametrize("torn", [b"", bytes(4096), b'{"format": "casa-tra', b"null"])
@pytest.mark.parametrize("name", [COMPLETE, FROZEN_DIGEST])
def test_a_note_torn_by_a_loss_of_power_counts_as_absent_and_the_sound_checkpoint_is_used(
    engines: list[Any],
    processor: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    torn: bytes,
):
    keeper = saver(tmp_path)
    keeper.save(engines[0], processor, steps_done=10)
    expected = weights(engines[0])
    if name == COMPLETE:
        train(engines[0], 3)
        keeper.save(engines[0], processor, steps_done=20)
    damaged = tmp_path / FROZEN_DIGEST if name == FROZEN_DIGEST else tmp_path / "step-00000020" / name
    damaged.write_bytes(torn)
    assert resume(engines[1], tmp_path, rank=0, world_size=1) == 10
    assert same(weights(engines[1]), expected)
    keeper.save(engines[1], processor, steps_done=20)
    assert f"{damaged} is damaged and counts as absent" in caplog.text
    assert json.loads(damaged.read_text()), "the next save writes it again"
    assert export(tmp_path, tmp_path / "exported").steps_done == 20


def test_a_checkpoint_is_on_the_disk_before_it_counts(
    engines: list[Any], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: set[Path] = set()
    fsync, replace = os.fsync, Path.replace

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    def renamed(self: Path, target: Path) -> Path:
        if target.name == COMPLETE:
            written = {path for path in tmp_path.rglob("*") if not path.name.startswith(".")}
            assert written | {self} <= synced
        if self in synced:
            synced.add(target)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", renamed)
    saver(tmp_path).save(engines[0], processor, steps_done=10)
    assert tmp_path / "step-00000010" / COMPLETE in synced


def test_where_none_is_sound_the_error_names_the_damage_and_the_remedy(
    engines: list[Any], processor: Any, tmp_path: Path
):
    saver(tmp_path).save(engines[0], processor, steps_done=10)
    spoiled(tmp_path, "truncated")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(StoreError, match=r"(?s)None of the 1 .* were written.*start again"),
    ):
        resume(engines[1], tmp_path, rank=0, world_size=1)


def test_a_checkpoint_of_another_width_is_refused_by_the_first_tensor_that_differs(
    engines: list[Any], processor: Any, tmp_path: Path
):
    saver(tmp_path).save(engines[0], processor, steps_done=10)
    wide = engine_of(processor, 1, hidden=128)
    with pytest.raises(
        StoreError, match=r"(?s)another model.*embed_tokens.weight has shape \[\d+, 96\].*128"
    ):
        resume(wide, tmp_path, rank=0, world_size=1)


def list_agreed(rank: int, world_size: int, roots: list[str], report: str) -> None:
    """In each of two workers with different folders: the steps that they resume from."""
    found = agreed_checkpoints(Path(roots[rank]), rank, world_size)
    Path(f"{report}-{rank}").write_text(json.dumps([str(saved.folder) for saved in found]))


def test_workers_go_on_from_what_the_first_one_sees(engines: list[Any], processor: Any, tmp_path: Path):
    here, late = tmp_path / "here", tmp_path / "late"
    for steps in (10, 20):
        saver(here, keep=2).save(engines[0], processor, steps_done=steps)
    late.mkdir()  # another node's view of the disk, a moment behind
    finish(start_group(2, list_agreed, [str(here), str(late)], str(tmp_path / "agreed")))
    first, second = (json.loads((tmp_path / f"agreed-{rank}").read_text()) for rank in (0, 1))
    assert first == second == [str(here / name) for name in ("step-00000010", "step-00000020")]


def test_a_full_disk_ends_with_its_name_and_the_checkpoint_before_is_whole(
    engines: list[Any], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keeper = saver(tmp_path, background=True)
    keeper.save(engines[0], processor, steps_done=10)
    keeper.close()
    write = Output.write

    def full(self: Output, data: Any) -> int:
        if self.tell() > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Output, "write", full)
    keeper.save(engines[0], processor, steps_done=20)
    with pytest.raises(StoreError, match=r"(?s)step-00000020.*: the disk is full.*MiB are free"):
        keeper.close()
    keeper.check()  # raised once
    monkeypatch.undo()
    assert [saved.steps_done for saved in list_checkpoints(tmp_path)] == [10]
    assert not list((tmp_path / "step-00000020").glob("*.safetensors"))
    assert resume(engines[1], tmp_path, rank=0, world_size=1) == 10


def test_a_worker_that_never_writes_is_named(
    engines: list[Any], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "OTHERS_TIMEOUT_S", 0.2)
    keeper = saver(tmp_path)
    keeper.save(engines[0], processor, steps_done=10)
    monkeypatch.setattr(Checkpointer, "_agree", lambda self: ("cafe", False))
    keeper.world_size = 2
    with pytest.raises(StoreError, match="Worker 1 has not written its part"):
        keeper.save(engines[0], processor, steps_done=20)
    assert [saved.steps_done for saved in list_checkpoints(tmp_path)] == [10]


def test_checkpoints_on_s3_are_the_same(
    engines: list[Any], processor: Any, s3_folder: RemotePath, tmp_path: Path
):
    keeper = saver(s3_folder, keep=1)
    keeper.save(engines[0], processor, steps_done=10)
    keeper.save(engines[0], processor, steps_done=20)
    assert [saved.steps_done for saved in list_checkpoints(s3_folder)] == [20]
    assert resume(engines[1], s3_folder, rank=0, world_size=1) == 20
    assert same(weights(engines[1]), weights(engines[0]))
    export(s3_folder, tmp_path / "model")
    assert same(dict(load_checkpoint(tmp_path / "model")[0].named_parameters()), weights(engines[0]))


def saving(folder: RemotePath, *options: str) -> subprocess.Popen[str]:
    """A process that saves steps 10 and 20 on S3 in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.train.engine", str(folder), *options],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_kill_during_the_upload_leaves_the_checkpoint_before_it_and_no_parts_for_long(
    s3_folder: RemotePath, tmp_path: Path
):
    killed = saving(s3_folder, "--slowly")
    assert killed.stdout is not None
    lines = iter(killed.stdout.readline, "")
    assert next(line for line in lines if line.startswith("part of 20")), "it is in the middle of the upload"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [saved.steps_done for saved in list_checkpoints(s3_folder)] == [10]
    assert s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key), "it had begun"
    export(s3_folder, tmp_path / "model")
    load_checkpoint(tmp_path / "model")
    again = saving(s3_folder)
    assert again.communicate(timeout=120)[0].splitlines()[0] == "resumes from 10"
    assert again.returncode == 0
    assert [saved.steps_done for saved in list_checkpoints(s3_folder)] == [10, 20]
    assert s3.list_uploads(s3_folder.settings, s3_folder.bucket, s3_folder.key) == []


def test_any_kept_step_becomes_a_model_that_loads(engines: list[Any], processor: Any, tmp_path: Path):
    keeper, root = saver(tmp_path / "run"), tmp_path / "run"
    keeper.save(engines[0], processor, steps_done=10)
    first = weights(engines[0])
    train(engines[0], 4)
    keeper.save(engines[0], processor, steps_done=20)
    for step, expected in ((10, first), (20, weights(engines[0])), (None, weights(engines[0]))):
        folder = tmp_path / f"model-{step}"
        assert export(root, folder, step).steps_done == (step or 20)
        model, again = load_checkpoint(folder)
        assert same(dict(model.named_parameters()), expected)
        assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert json.loads((folder / "manifest.json").read_text())["provenance"] == {"steps": step or 20}
    typed = CliRunner().invoke(app, ["export", str(root), str(tmp_path / "typed"), "--step", "10"])
    assert typed.exit_code == 0
    assert typed.stdout.startswith(f"{tmp_path / 'typed'}: the model after 10 steps, from {root}")
    assert same(dict(load_checkpoint(tmp_path / "typed")[0].named_parameters()), first)
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "casa", "export", str(root), str(tmp_path / "quiet")]
    quiet = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert quiet.stderr == "", "a library printed"
    assert len(quiet.stdout.splitlines()) == 1
    with pytest.raises(ConfigError, match=r"(?s)no checkpoint of step 15.*10, 20"):
        export(root, tmp_path / "none", 15)
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        export(tmp_path / "empty", tmp_path / "none")
    spoiled(root, "altered")
    with pytest.raises(StoreError, match=r"(?s)cannot be exported.*another content"):
        export(root, tmp_path / "none")
