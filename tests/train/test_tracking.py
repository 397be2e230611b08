"""Curves of a run in TensorBoard, W&B and MLflow: real libraries, read back; and what if one fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import crc32c

from casa_core.errors import ConfigError
from pipelines.storage.uri import Folder
from pipelines.train import tracking
from pipelines.train.metrics import StepMetrics
from pipelines.train.tracking import TrackedRun, Trackers, scalars

KEY = "0123456789abcdef" * 2 + "01234567"


def step(number: int, loss: float = 1.0, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": number,
        "kind": "image",
        "loss": loss,
        "learning_rate": 1e-4,
        "grad_norm": 2.0,
        "text_tokens": 100,
        "image_tokens": 400,
        "trained_tokens": 20,
        "seconds": 0.5,
        "loader_wait_s": 0.1,
        "source_losses": {"vqa": loss},
        "workers": 2,
    }
    return StepMetrics(**(values | changes))


def run_in(folder: Folder) -> TrackedRun:
    return TrackedRun("quickstart", KEY, str(folder), {"model.kind": "casa", "train.steps": 8})


def events(folder: Folder) -> dict[str, dict[int, float]]:
    """Name → step → value, as TensorBoard shows them: what a restart purges is gone."""
    shown: dict[str, dict[int, float]] = {}
    for path in sorted(folder.rglob("events.*")):
        data = path.read_bytes()
        while data:  # TFRecord: length, checksum, record, checksum
            length = int.from_bytes(data[:8], "little")
            record = data[12 : 12 + length]
            masked = crc32c(record)
            masked = (((masked >> 15) | (masked << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            assert int.from_bytes(data[12 + length : 16 + length], "little") == masked
            event = Event.FromString(record)
            if event.HasField("session_log") and event.step:
                for values in shown.values():
                    for late in [number for number in values if number >= event.step]:
                        del values[late]
            for value in event.summary.value:
                shown.setdefault(value.tag, {})[event.step] = value.simple_value
            data = data[16 + length :]
    return shown


def test_every_measured_value_has_a_name_and_others_are_left_out():
    values = scalars(step(3, 1.5, held_out_loss={"image": 1.2, "video": 2.0}, existing_learning_rate=1e-5))
    assert values["loss/image"] == 1.5
    assert values["loss_by_source/vqa"] == 1.5
    assert values["held_out_loss/video"] == 2.0
    assert values["optimizer/existing_learning_rate"] == 1e-5
    assert values["tokens_per_second/text"] == 200
    assert values["tokens_per_second/image"] == 800
    assert values["speed/loader_wait_share"] == pytest.approx(0.2)
    assert "speed/mfu" not in values
    assert "loss/video" not in values


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_tensorboard_shows_every_step_once_after_a_run_goes_on_from_an_earlier_one(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracking, "EVENT_BYTES", 2000)  # a new file on S3 at each upload
    folder = tmp_path if place == "disk" else request.getfixturevalue("s3_folder")
    first = Trackers(["tensorboard"], run_in(folder))
    for number in range(1, 7):
        first.write(step(number, loss=number))
        if number == 4:
            first.flush()
        if number == 4 and place == "s3":
            assert events(folder)["loss/image"].keys() == {1, 2, 3, 4}, "and it has not been closed"
    first.close()
    second = Trackers(["tensorboard"], run_in(folder), steps_done=4)
    for number in range(5, 9):
        second.write(step(number, loss=number + 100))
    second.close()
    losses = events(folder / "quickstart-01234567")["loss/image"]
    assert losses == {1: 1, 2: 2, 3: 3, 4: 4, 5: 105, 6: 106, 7: 107, 8: 108}


def test_what_was_written_before_a_checkpoint_is_there_after_a_kill(tmp_path: Path):
    trackers = Trackers(["tensorboard"], run_in(tmp_path))
    trackers.write(step(1))
    trackers.flush()
    assert events(tmp_path)["loss/image"] == {1: 1.0}, "and it has not been closed"
    trackers.close()


def test_mlflow_has_one_run_of_two_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    for begin, end in ((1, 4), (4, 6)):
        trackers = Trackers(["mlflow"], run_in(tmp_path), steps_done=begin - 1)
        for number in range(begin, end):
            trackers.write(step(number, loss=1 / number))
        trackers.close()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("casa")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "quickstart"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.kind": "casa", "train.steps": "8"}
    history = client.get_metric_history(run.info.run_id, "loss/image")
    assert {metric.step: metric.value for metric in history} == {n: 1 / n for n in range(1, 6)}


def test_wandb_gets_every_step_under_the_runs_own_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers = Trackers(["wandb"], run_in(tmp_path))
    for number in (1, 2):
        trackers.write(step(number, loss=0.123456 * number))
    trackers.close()
    (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{KEY[:16]}/run-{KEY[:16]}.wandb")
    wanted = (b"loss/image", b"0.123456", b"0.246912", b"model.kind", b"casa")
    deadline = time.monotonic() + 60  # its own process writes the file, on a busy machine after the run's end
    while missing := [text for text in wanted if text not in file.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(run: TrackedRun, steps_done: int) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setitem(tracking.OPENERS, "wandb", missing)
    with pytest.raises(ConfigError, match=r"(?s)names wandb.*pip install 'casa\[track\]'"):
        Trackers(["tensorboard", "wandb"], run_in(tmp_path))


def test_a_tracker_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"(?s)mlflow cannot be opened for run quickstart.*127\.0\.0\.1"):
        Trackers(["mlflow"], run_in(tmp_path))


class Failing:
    def __init__(self, after: int) -> None:
        self.left = after

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the server is gone")

    def flush(self) -> None: ...

    def close(self) -> None:
        raise AssertionError("a tracker that was given up is left alone")


def test_one_that_fails_later_is_given_up_with_a_warning_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(tracking.OPENERS, "wandb", lambda run, done: Failing(after=1))
    trackers = Trackers(["wandb", "tensorboard"], run_in(tmp_path))
    with caplog.at_level(logging.WARNING):
        for number in (1, 2, 3):
            trackers.write(step(number))
        trackers.close()
    assert caplog.text.count("wandb fails and is given up; metrics.jsonl has every step") == 1
    assert events(tmp_path)["loss/image"] == {1: 1.0, 2: 1.0, 3: 1.0}


def test_one_that_does_not_answer_keeps_no_step_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    answer = threading.Event()

    class Silent(Failing):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            answer.wait()

    monkeypatch.setitem(tracking.OPENERS, "mlflow", lambda run, done: Silent(after=0))
    monkeypatch.setattr(tracking, "MAX_WAITING", 5)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.1)
    trackers = Trackers(["mlflow"], run_in(tmp_path))
    began = time.monotonic()
    for number in range(1, 21):
        trackers.write(step(number))
    trackers.flush()
    with caplog.at_level(logging.WARNING):
        trackers.close()
    assert time.monotonic() - began < 10
    assert "too slow and lack some steps; metrics.jsonl has every one" in caplog.text
    answer.set()


def test_scores_that_come_later_stand_at_their_own_steps(tmp_path: Path):
    known: dict[int, dict[str, float]] = {}
    trackers = Trackers(["tensorboard"], run_in(tmp_path), scores=lambda: known)
    trackers.write(step(4))
    known[2] = {"vqa_accuracy": 0.5}
    trackers.flush()
    known[4] = {"vqa_accuracy": 0.75}
    trackers.close()
    assert events(tmp_path)["held_out_score/vqa_accuracy"] == {2: 0.5, 4: 0.75}
