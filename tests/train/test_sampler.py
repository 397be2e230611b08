"""Which sequences train when, how fast, and what is written down: pure functions of the recipe."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casa_core.errors import ConfigError
from pipelines.recipe.model import Train
from pipelines.storage.growing import finish
from pipelines.storage.uri import Folder
from pipelines.train import metrics
from pipelines.train.loop import learning_rate_factor
from pipelines.train.metrics import MetricsLog, StepMetrics
from pipelines.train.sampler import StepSampler, share_of
from tests.support.s3 import flaky

DATA = {"image": [0, 1, 2, 3, 4, 10, 11], "video": [5, 6, 7]}


def order(
    ratio: tuple[int, int] = (3, 1), seed: int = 0, image: int = 2, video: int = 1, data: dict | None = None
) -> StepSampler:
    sizes = {"image": image, "video": video}
    return StepSampler(data or DATA, ratio=ratio, sequences_per_step=sizes, seed=seed)


@given(images=st.integers(0, 5), videos=st.integers(0, 5))
def test_every_round_keeps_the_ratio_and_spreads_the_rarer_kind(images: int, videos: int):
    if not images + videos:
        return
    steps = order((images, videos))
    total = images + videos
    kinds = [steps[number].kind for number in range(4 * total)]
    assert kinds == kinds[:total] * 4
    assert Counter(kinds[:total]) == Counter({"image": images, "video": videos})
    for length in range(1, total + 1):
        for start in range(total):
            seen = kinds[start : start + length].count("video")
            assert abs(seen - length * videos / total) < 1


def test_three_pictures_to_one_video_are_taken_in_turn():
    steps = order((3, 1))
    assert [steps[number].kind for number in range(8)] == ["image", "image", "image", "video"] * 2


@given(image=st.integers(1, 5), video=st.integers(1, 4), seed=st.integers(0, 3))
def test_every_sequence_comes_once_an_epoch_whatever_a_step_takes(image: int, video: int, seed: int):
    steps = order((2, 1), seed, image, video)
    taken: dict[str, list[int]] = {"image": [], "video": []}
    for number in range(60):
        assert len(steps[number].sequences) == {"image": image, "video": video}[steps[number].kind]
        taken[steps[number].kind] += steps[number].sequences
    for kind, numbers in DATA.items():
        whole = len(taken[kind]) // len(numbers)
        epochs = [taken[kind][n * len(numbers) : (n + 1) * len(numbers)] for n in range(whole)]
        assert all(sorted(epoch) == sorted(numbers) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has an order of its own"


def test_the_order_is_the_seeds_alone():
    steps = [order(seed=3)[number] for number in range(40)]
    again = order(seed=3)
    assert [again[number] for number in reversed(range(40))] == steps[::-1], "asking in any order"
    assert [order(seed=4)[number] for number in range(40)] != steps


@given(sequences=st.lists(st.integers(), unique=True, max_size=9), workers=st.integers(1, 4))
def test_workers_share_a_step_evenly_and_completely(sequences: list[int], workers: int):
    shares = [share_of(sequences, rank, workers) for rank in range(workers)]
    assert sorted(number for share in shares for number in share) == sorted(sequences)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_ratio_that_asks_for_a_kind_without_data_is_refused():
    with pytest.raises(ConfigError, match=r"image_video_ratio = \[3, 1\]` asks for video steps"):
        order((3, 1), data={"image": [0, 1], "video": []})
    assert order((1, 0), data={"image": [0, 1], "video": []})[7].kind == "image"


def factors_of(**schedule: int) -> list[float]:
    """The factor of each step; a recipe refuses some of these schedules, and the arithmetic holds for all."""
    train = Train.model_construct(**schedule)  # pyright: ignore[reportArgumentType]
    return [learning_rate_factor(train, step) for step in range(train.steps)]


def test_the_learning_rate_rises_stays_and_falls():
    factors = factors_of(steps=10, warmup_steps=4, decay_steps=3)
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_a_run_without_warm_up_or_decay_has_one_learning_rate():
    assert set(factors_of(steps=5, warmup_steps=0, decay_steps=0)) == {1.0}


@given(steps=st.integers(1, 30), warmup=st.integers(0, 40), decay=st.integers(0, 40))
def test_the_learning_rate_never_leaves_its_bounds(steps: int, warmup: int, decay: int):
    factors = factors_of(steps=steps, warmup_steps=warmup, decay_steps=decay)
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def step_metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=step,
        kind="image",
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        text_tokens=100,
        image_tokens=50,
        trained_tokens=10,
        seconds=0.5,
        loader_wait_s=0.0,
    )


def written(folder: Folder) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in metrics.read_lines(folder / metrics.FILE)]


def test_metrics_of_steps_that_will_be_trained_again_are_dropped_on_resume(tmp_path: Path):
    log = MetricsLog(tmp_path, steps_done=0)
    for step in (1, 2, 3, 4):
        log.write(step_metrics(step))
    assert written(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)], "readable while it is written"
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    assert len(written(tmp_path)) == 4
    log = MetricsLog(tmp_path, steps_done=2)
    log.write(step_metrics(3, loss=0.5))
    log.close()
    assert written(tmp_path) == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_lines_that_a_loss_of_power_has_turned_to_zeros_count_as_absent(tmp_path: Path, caplog):
    log = MetricsLog(tmp_path, steps_done=0)
    for step in (1, 2, 3):
        log.write(step_metrics(step))
    log.close()
    lines = (tmp_path / metrics.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / metrics.FILE).write_bytes(lines[0] + bytes(600) + lines[1][-20:] + lines[2] + bytes(4096))
    assert written(tmp_path) == [(1, 1.0), (3, 1.0)]
    assert f"A line of {tmp_path / metrics.FILE} is damaged" in caplog.text
    log = MetricsLog(tmp_path, steps_done=1)
    log.write(step_metrics(2))
    log.close()
    assert written(tmp_path) == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_equal_runs_have_equal_metrics_and_their_times_in_a_file_of_their_own(where: str, request, tmp_path):
    folder = request.getfixturevalue("s3_folder") if where == "s3" else tmp_path
    whole: list[list[dict[str, Any]]] = []
    for run, seconds in ((folder / "quick", 0.5), (folder / "slow", 7.25)):
        run.mkdir(parents=True)
        log = MetricsLog(run, steps_done=0)
        for step in (1, 2):
            timed = {"seconds": seconds, "workers": round(seconds) + 1, "memory_gib": seconds}
            log.write(replace(step_metrics(step), **timed))
        log.close()
        finish(run / metrics.FILE)
        whole.append(metrics.read_lines(run / metrics.FILE))
        metrics.set_times_apart(run)
        assert metrics.read_lines(run / metrics.FILE) == whole[-1]
    assert (folder / "quick" / metrics.FILE).read_bytes() == (folder / "slow" / metrics.FILE).read_bytes()
    assert [step["seconds"] for own in whole for step in own] == [0.5, 0.5, 7.25, 7.25]


def test_a_run_that_goes_on_after_its_times_were_set_apart_has_them_all(tmp_path: Path):
    log = MetricsLog(tmp_path, steps_done=0)
    for step in (1, 2):
        log.write(step_metrics(step))
    log.close()
    before = (tmp_path / metrics.FILE).read_bytes()
    metrics.set_times_apart(tmp_path)
    (tmp_path / metrics.FILE).write_bytes(before)  # killed between the two files
    apart = (tmp_path / metrics.FILE, tmp_path / metrics.TIMINGS)
    metrics.set_times_apart(tmp_path)
    expected = [path.read_bytes() for path in apart]
    log = MetricsLog(tmp_path, steps_done=1)
    log.write(step_metrics(2))
    log.close()
    metrics.set_times_apart(tmp_path)
    assert [path.read_bytes() for path in apart] == expected


def test_a_run_from_the_start_drops_what_an_earlier_one_wrote(tmp_path: Path):
    MetricsLog(tmp_path, steps_done=0).write(step_metrics(1))
    MetricsLog(tmp_path, steps_done=0).close()
    assert written(tmp_path) == []


def test_the_progress_line_tells_loss_pace_and_time_left():
    recent = [asdict(step_metrics(step, loss=0.1234)) for step in range(1, 11)]
    assert metrics.progress_message(recent, 30) == (
        "loss 0.123 image · 200 text, 100 image tok/s · 1 worker · 10 s left"
    )
    recent[-2] |= {"kind": "video", "loss": 2.5}
    recent[-1] |= {"mfu": 0.14, "workers": 64, "loader_wait_s": 0.5}
    assert metrics.progress_message(recent, 100_000) == (
        "loss 0.123 image, 2.500 video · 200 text, 100 image tok/s · MFU 14% · waits for data 10% · "
        "64 workers · 13 h 53 min left"
    )


def test_a_growing_file_is_followed_line_by_line_and_from_the_start_when_a_resumed_run_replaces_it(
    tmp_path: Path,
):
    follower = metrics.MetricsFollower(tmp_path / metrics.FILE)
    assert follower.poll() == []
    log = MetricsLog(tmp_path, steps_done=0)
    for step in (1, 2):
        log.write(step_metrics(step))
    assert [line["step"] for line in follower.poll()] == [1, 2]
    assert follower.poll() == []
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 3, "lo')
        file.flush()
        assert follower.poll() == []
        file.write('ss": 1.0}\n')
    assert [line["step"] for line in follower.poll()] == [3]
    MetricsLog(tmp_path, steps_done=1).write(step_metrics(2))
    assert [line["step"] for line in follower.poll()] == [1, 2]


def test_on_s3_the_same_steps_are_followed_resumed_and_become_one_object(s3_server, s3_folder):
    with flaky(s3_server, fail_every=5) as proxy:
        folder = proxy.through(s3_folder)
        follower = metrics.MetricsFollower(folder / metrics.FILE)
        killed = MetricsLog(folder, steps_done=0)
        for step in (1, 2, 3):
            killed.write(step_metrics(step))
        killed.flush()  # a checkpoint; then the worker is killed
        assert [line["step"] for line in follower.poll()] == [1, 2, 3]
        log = MetricsLog(folder, steps_done=2)
        log.write(step_metrics(3, loss=0.5))
        log.close()
        assert [(line["step"], line["loss"]) for line in follower.poll()] == [(1, 1.0), (2, 1.0), (3, 0.5)]
        finish(folder / metrics.FILE)
        MetricsLog(folder, steps_done=3).close()  # killed before the artifact was committed
        finish(folder / metrics.FILE)
        assert proxy.failed > 0
    assert [path.name for path in s3_folder.rglob("*")] == [metrics.FILE]
    assert len((s3_folder / metrics.FILE).read_text().splitlines()) == 3
    assert written(s3_folder) == [(1, 1.0), (2, 1.0), (3, 0.5)]
