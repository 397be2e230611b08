"""The generated corpora: the published layouts, balanced, learnable, the same for the same seed."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from casa_core.errors import ConfigError
from casa_core.media.decode import VideoFrames, decode_image
from casa_core.types import Image, Text
from pipelines.dag.context import StageContext
from pipelines.data.generate.easy_vqa import FINEVISION_SCHEMA, _load
from pipelines.data.generate.moving_shapes import Appearance, Clip, make_clip
from pipelines.data.generate.run import generate, run_stage
from pipelines.data.generate.shapes import COLORS, SHAPES
from pipelines.data.read import Record
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from tests.support.data.corpus import read_all, reasons

VQA = {"generator": "easy_vqa", "train_rows": 640, "test_rows": 96}
LIVE = {"generator": "moving_shapes", "train_clips": 8, "test_clips": 3, "seconds": 8.0, "fps": 10}


@pytest.fixture(scope="module")
def vqa(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vqa")
    generate(folder, VQA, seed=0)
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    generate(folder, LIVE, seed=0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def good_records(folder: Path, split: str) -> list[Record]:
    found = read_all(FineVisionReader, folder, split)
    return [r for r in found if isinstance(r, Record) and r.media[0].name != "train/truncated.png"]


def turns(record: Record) -> list[tuple[str, str]]:
    """The questions of a record, as the package words them, and their answers."""
    texts = [part.text for part in record.sample.parts if isinstance(part, Text)]
    return [(plain(text), answer) for text, answer in zip(texts[::2], texts[1::2], strict=True)]


def plain(text: str) -> str:
    """A question as the package asks it."""
    return text.lower().replace("colour", "color").removesuffix("?") + "?"


def kind_of(answer: str) -> str:
    return "color" if answer in COLORS else "shape" if answer in SHAPES else "yes_no"


def topic(text: str) -> str:
    return "shape" if any(shape in text for shape in SHAPES) else "color"


def balance(asked: list[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Yes/no question → how often each answer is right."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in asked:
        if kind_of(answer) == "yes_no":
            answers[text][answer] += 1
    return answers


def test_easy_vqa_has_finevisions_schema_and_holds_out_every_kind_equally(vqa):
    (name,) = json.loads((vqa / "README.json").read_text())["splits"]["test"]
    assert pq.read_schema(vqa / name).equals(FINEVISION_SCHEMA)
    kinds = Counter()
    for record in good_records(vqa, "test"):
        ((_, answer),) = turns(record)
        kind = record.meta["question_type"]
        kinds[kind] += 1
        assert kind in (kind_of(answer), "reworded")
    assert kinds == dict.fromkeys(("color", "shape", "yes_no", "reworded"), 96 // 4)


def test_a_training_row_of_easy_vqa_asks_five_things_about_its_picture(vqa):
    """Its colour, its shape, and three times whether it shows something, in any order."""
    firsts = Counter()
    for record in good_records(vqa, "train"):
        asked = turns(record)
        kinds = [kind_of(answer) for _, answer in asked]
        assert Counter(kinds) == {"color": 1, "shape": 1, "yes_no": 3}
        firsts[kinds[0]] += 1
        answers = dict(zip(kinds, (answer for _, answer in asked), strict=True))
        for text, answer in asked:  # what one answer says, no other denies
            if kind_of(answer) == "yes_no":
                shown = answers[topic(text)] in text.rstrip("?").split()
                negated = " no " in text or " not " in text
                assert (answer == "yes") == (shown != negated)
    assert min(firsts["color"], firsts["shape"]) > 640 / 8
    assert firsts["yes_no"] > 640 / 2


def test_no_held_out_yes_no_question_of_easy_vqa_can_be_answered_by_its_words_alone(vqa):
    answers = balance([turn for record in good_records(vqa, "test") for turn in turns(record)])
    assert all(counts["yes"] == counts["no"] for counts in answers.values())
    assert len(answers) > 10


def test_training_answers_yes_as_often_as_no_whatever_the_question_names(vqa):
    """By name, and for plain and negated questions: within four standard deviations of a half."""
    counts = defaultdict(Counter)
    for record in good_records(vqa, "train"):
        for text, answer in turns(record):
            if kind_of(answer) == "yes_no":
                (name,) = {*text.rstrip("?").split()} & {*COLORS, *SHAPES}
                counts[name][answer] += 1
                counts["negated" if " no " in text or " not " in text else "plain"][answer] += 1
    assert {*counts} == {*COLORS, *SHAPES, "plain", "negated"}
    for found in counts.values():
        asked = found.total()
        assert abs(found["yes"] - asked / 2) < 4 * (asked / 4) ** 0.5
    negated = counts["negated"].total()
    assert 1 / 10 < negated / (negated + counts["plain"].total()) < 3 / 20


def test_easy_vqa_asks_some_held_out_questions_again_in_other_words(vqa):
    asked = defaultdict(set)
    for record in good_records(vqa, "test"):
        text = record.sample.parts[1].text
        asked[record.media[0].name, plain(text)].add((record.meta["question_type"], text))
    again = [kinds for kinds in asked.values() if len(kinds) > 1]
    assert len(again) == 96 // 4
    for kinds in again:
        assert len(kinds) == 2
        assert "reworded" in dict(kinds)
        assert len(set(dict(kinds).values())) == 2, "in other words"


def test_of_easy_vqas_training_questions_about_half_are_in_other_words(vqa):
    texts = [part.text for record in good_records(vqa, "train") for part in record.sample.parts[1::2]]
    assert len(texts) == 5 * 640
    assert 0.45 < sum(text != plain(text) for text in texts) / len(texts) < 0.55


def test_easy_vqas_training_answers_are_those_of_the_package(vqa):
    """Where a question is in the package's own list, its answer is the same."""
    listed = {(f"train/{q.image_id}.png", q.text): q.answer for q in _load("train")[0]}
    rows = good_records(vqa, "train")
    found = [
        (listed.get((row.media[0].name or "", text)), answer) for row in rows for text, answer in turns(row)
    ]
    known = [(theirs, ours) for theirs, ours in found if theirs is not None]
    assert len(known) > 100
    assert all(theirs == ours for theirs, ours in known)


def test_easy_vqa_draws_each_row_once_and_holds_its_test_pictures_out(vqa):
    for split in ("train", "test"):
        rows = good_records(vqa, split)
        keys = [(row.media[0].name, *(part.text for part in row.sample.parts[1::2])) for row in rows]
        assert {key[0].split("/")[0] for key in keys} == {split}
        assert len(set(keys)) == len(keys)


def test_easy_vqa_has_two_broken_records_among_its_training_rows(vqa):
    found = Counter(reasons(read_all(FineVisionReader, vqa)))
    assert found == {None: 641, "missing_image": 1}  # the truncated picture shows when it is decoded
    assert Counter(reasons(read_all(FineVisionReader, vqa, "test"))) == {None: 96}


def seen_colors(picture: np.ndarray) -> set[str]:
    """The colours inside shapes: of non-pale pixels that look like all those around them."""
    around = np.lib.stride_tricks.sliding_window_view(picture.astype(int), (3, 3), axis=(0, 1))
    even = np.ptp(around, axis=(-2, -1)).max(-1) < 64
    inner = picture[1:-1, 1:-1][even & (picture[1:-1, 1:-1].min(-1) < 200)].astype(int)
    names = list(COLORS)
    nearest = np.abs(inner[:, None] - np.array([COLORS[name] for name in names])).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(names))
    return {name for name, count in zip(names, counts, strict=True) if count >= 8}


def test_a_clip_can_be_commented_from_its_frames_alone(live):
    """An independent commentator that compares each frame with the one before says the truth's colours."""
    for record in read_all(LiveWhisperXReader, live, "test"):
        parts = record.sample.parts[1:]
        frames = [part for part in parts if isinstance(part, Image)]
        words = [part.text for part in parts if isinstance(part, Text)]
        assert len(frames) == len(words) == 16
        with VideoFrames(record.media[0].data) as video:
            pictures = list(video.at([frame.timestamp for frame in frames]))
        before: set[str] = set()
        for number, picture in enumerate(pictures):
            colors = seen_colors(picture)
            if appeared := colors - before:
                assert words[number] == f"a {appeared.pop()}"
                assert words[number + 1] in SHAPES
            else:
                assert words[number] == "" or words[number] in SHAPES
            before = colors


def test_some_clips_lie_inside_a_longer_video_with_absolute_times():
    clips = [make_clip(random.Random(seed), 8.0) for seed in range(60)]
    assert 0.2 < np.mean([clip.start > 0 for clip in clips]) < 0.5
    for clip in clips:
        times = [begin for begin, _, _ in clip.words]
        assert times == sorted(times)
        assert clip.start <= times[0]
        assert clip.words[-1][1] <= clip.end
        assert bool(clip.previous) == (clip.start > 0)
        begins = [appearance.begin for appearance in clip.appearances if appearance.begin >= clip.start - 0.2]
        gaps = np.diff(begins)
        assert ((gaps > 1.3) & (gaps < 3.2)).all()


def shown_at(clip: Clip, time: float) -> list[Appearance]:
    return [each for each in clip.appearances if each.begin <= time < each.end]


def test_half_of_the_clips_show_two_shapes_at_a_time_apart_and_of_two_colours():
    clips = [make_clip(random.Random(seed), 8.0) for seed in range(60)]
    most = [max(len(shown_at(clip, time)) for time in np.arange(0, clip.end, 0.1)) for clip in clips]
    assert set(most) == {1, 2}
    assert 0.3 < most.count(2) / len(most) < 0.7
    for clip in clips:
        for time in np.arange(0, clip.end, 0.1):
            if len(shown := shown_at(clip, time)) == 2:
                assert shown[0].shape.color != shown[1].shape.color
                (left, left_x), (right, right_x) = sorted(
                    ((each.shape, each.center(time)[0]) for each in shown), key=lambda one: one[1]
                )
                assert left_x + left.width / 2 < right_x - right.width / 2


def test_shapes_stay_in_the_picture_and_change_colour_and_name():
    for seed in range(40):
        clip = make_clip(random.Random(seed), 8.0)
        for before, after in zip(clip.appearances, clip.appearances[1:], strict=False):
            assert before.shape.color != after.shape.color
            assert before.shape.name != after.shape.name
            assert before.begin < after.begin
        for appearance in clip.appearances:
            for time in np.linspace(appearance.begin, appearance.end, 9):
                x, y = appearance.center(float(time))
                assert appearance.shape.width / 2 <= x <= 64 - appearance.shape.width / 2
                assert appearance.shape.height / 2 <= y <= 64 - appearance.shape.height / 2


def test_speech_is_as_fast_as_a_persons(live):
    for line in (live / "train.jsonl").read_text().splitlines()[:-1]:
        words = json.loads(line)[1]["content"][0]["text_stream"]
        for n in range(0, len(words), 3):
            rate = 3 / (words[n + 2][1] - words[n][0])
            assert 2.0 <= rate <= 4.2


def test_the_moving_shapes_have_live_whisperxs_layout_and_one_empty_video(live):
    lines = (live / "train.jsonl").read_text().split("\n")
    offsets = json.loads(lines[-1])
    assert len(offsets) == len(lines) - 1 == LIVE["train_clips"] + 1
    data = (live / "train.jsonl").read_bytes()
    for offset, line in zip(offsets, lines, strict=False):
        assert data[offset:].startswith(line.encode())
    sizes = [len(record.media[0].data) for record in read_all(LiveWhisperXReader, live)]
    assert sizes.count(0) == 1
    texts = [json.loads(line)[0]["content"][1] for line in lines[:-1]]
    assert any("category" in text for text in texts)
    assert any("category" not in text for text in texts)


def test_colours_survive_the_video_codec(live):
    for record in read_all(LiveWhisperXReader, live, "test"):
        with VideoFrames(record.media[0].data) as video:
            (picture,) = video.at([record.sample.parts[-2].timestamp])
        for name in seen_colors(picture):
            error = np.abs(picture.reshape(-1, 3).astype(int) - np.array(COLORS[name])).max(axis=1)
            assert np.sort(error)[20] <= 16


@pytest.mark.parametrize("make", [VQA, LIVE | {"train_clips": 2, "test_clips": 1}], ids=["vqa", "live"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, make):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        generate(tmp_path / name, make, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    differing = {
        name for name, data in contents(tmp_path / "c").items() if data != contents(tmp_path / "a").get(name)
    }
    assert {name for name in differing if "train-0000" in name or name == "train.jsonl"}


def test_held_out_clips_differ_from_those_to_train_on(live):
    videos = [path.read_bytes() for path in (live / "videos").glob("t*-0*.mp4")]
    assert len(set(videos)) == len(videos) == LIVE["train_clips"] + LIVE["test_clips"]


def test_the_stage_clears_what_a_killed_attempt_left(tmp_path):
    output = tmp_path / "out"
    (output / "vqa").mkdir(parents=True)
    (output / "vqa" / "train-00007-of-00008.parquet").write_bytes(b"old")
    steps = []
    context = StageContext(
        name="corpus-vqa",
        settings={"make": VQA, "seed": 0},
        placement={},
        output=output,
        progress=lambda *step: steps.append(step),
    )
    summary = run_stage(context)
    assert sorted(contents(output)) == [
        "README.json",
        "vqa/test-00000-of-00001.parquet",
        "vqa/train-00000-of-00001.parquet",
    ]
    assert summary["files"] == 3
    assert summary["splits"] == {"train": 1, "test": 1}
    assert steps[-1][0] == steps[-1][1] == 736


def test_an_unknown_generator_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="easy_vqa, moving_shapes"):
        generate(tmp_path, {"generator": "easyvqa"}, seed=0)


def test_pictures_look_like_easy_vqas(vqa):
    """Sizes and grounds of the clips' look are those of the real pictures."""
    for record in read_all(FineVisionReader, vqa, "test")[:20]:
        picture = decode_image(record.media[0].data)
        assert picture.shape == (64, 64, 3)
        assert np.median(picture.reshape(-1, 3), axis=0).min() >= 200
