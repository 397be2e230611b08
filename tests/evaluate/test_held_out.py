"""Held-out samples become questions and clips, and the answers score boards; the model knows only colours."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from casa_core.errors import DataError
from casa_core.types import Image, Sample, Text
from pipelines.dag.settings import read_settings
from pipelines.data.store.rows import CleanSample
from pipelines.evaluate.held_out import benchmark_for
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.evaluate.held_out.live import live_frames
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.held_out.run import captions, print_board, summary, write
from pipelines.evaluate.held_out.scoring import boards_of
from pipelines.evaluate.held_out.vqa import Vqa
from tests.support.data.rows import row_of
from tests.support.evaluate.run import EVALUATE, live_rows, predicted, vqa_rows, write_clean

SETTINGS = read_settings(BenchmarkSettings, EVALUATE)
CHAT = (
    Image(data=b"png"),
    Text(role="user", text="first?"),
    Text(role="assistant", text="one", trained=True),
    Text(role="user", text="second?"),
    Text(role="assistant", text="two", trained=True),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return live_rows(3, tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory, clips):
    root = tmp_path_factory.mktemp("clean")
    write_clean(root / "vqa", vqa_rows(18))
    write_clean(root / "live", clips)
    return {name: HeldOut.of(root / name, SETTINGS) for name in ("vqa", "live")}


@pytest.fixture(scope="module")
def predictions(sources):
    return predicted(sources)


@pytest.fixture(scope="module")
def boards(sources, predictions):
    return boards_of(sources, predictions, SETTINGS)


def test_a_sample_is_evaluated_on_by_the_benchmark_of_its_shape(clips):
    assert benchmark_for(CleanSample.from_row(vqa_rows(1)[0]).sample).name == "vqa"
    assert benchmark_for(CleanSample.from_row(clips[0]).sample).name == "live"
    with pytest.raises(DataError, match="neither a trained answer nor live frames"):
        benchmark_for(Sample(source="s", sample_id="1", parts=(Text(role="user", text="hello"),)))


def test_a_chats_later_question_comes_with_the_true_earlier_turns():
    chat = Sample(source="chat", sample_id="1", parts=CHAT)
    first, second = Vqa().questions(chat, {"question_type": "chat"})
    assert (first.truth.answers, second.truth.answers) == (("one",), ("two",))
    assert first.sample.parts == chat.parts[:2]
    assert second.sample.parts == chat.parts[:4]
    assert second.truth.category == "chat"


def test_every_turn_of_every_row_is_found_by_its_index(tmp_path):
    def chat(number: int, turns: int) -> dict:
        parts = [
            Text(role=role, text=f"{number}/{turn}", trained=role == "assistant")
            for turn in range(turns)
            for role in ("user", "assistant")
        ]
        sample = Sample(source="chat", sample_id=str(number), parts=tuple(parts))
        return row_of(sample, [], {})

    write_clean(tmp_path / "chat", [chat(0, 2), chat(1, 0), chat(2, 1), chat(3, 3)])
    source = HeldOut.of(tmp_path / "chat", SETTINGS)
    places = [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (3, 2)]
    assert [source.place(index) for index in range(len(source))] == places
    for start in range(len(source)):
        for stop in range(start, len(source) + 1):
            truths = [one.truth.answers for one in source.read(start, stop)]
            assert truths == [(f"{row}/{turn}",) for row, turn in places[start:stop]]
    some = HeldOut.of(tmp_path / "chat", SETTINGS, most=3)
    assert [one.truth.answers[0] for one in some.read(0, len(some))] == ["0/0", "2/0", "3/1"]


def test_answers_are_judged_by_exact_match(predictions):
    answers = predictions["vqa"]["model"]
    assert all(one.correct for one in answers if one.question_type == "color")
    for one in answers:
        assert one.correct == (one.answer.lower().rstrip(".") == one.truth)
    assert {one.question_type for one in answers} == {"color", "shape", "yes_no"}
    assert answers[0].question == "what color does it have?"


def test_every_line_of_the_score_board_can_be_recounted_from_the_answers(predictions, boards):
    board = boards["vqa"]
    model, blind, chance = board.lines
    assert (model.name, blind.name, chance.name) == ("model", "blind", "chance")
    kinds = ("color", "shape", "yes_no")
    for line in (model, blind):
        for kind in kinds:
            marks = [one.correct for one in predictions["vqa"][line.name] if one.question_type == kind]
            assert line.cells[kind].value == sum(marks) / len(marks)
    assert model.cells["mean of types"].value == pytest.approx(sum(model.cells[k].value for k in kinds) / 3)
    shapes = [one.truth for one in predictions["vqa"]["model"] if one.question_type == "shape"]
    assert chance.cells["shape"].value == max(map(shapes.count, shapes)) / len(shapes)
    assert model.cells["color"].value == 1.0 > blind.cells["color"].value


def test_a_clip_is_asked_about_without_its_words_and_held_against_them(sources, predictions, clips):
    sample = CleanSample.from_row(clips[0]).sample
    [question] = sources["live"].read(0, 1)
    assert not any(isinstance(part, Text) and part.role == "assistant" for part in question.sample.parts)
    assert [p for p in question.sample.parts if isinstance(p, Image)] == [i for i, _ in live_frames(sample)]
    outcome = predictions["live"]["model"][0]
    assert [f.timestamp for f in outcome.frames] == [image.timestamp for image, _ in live_frames(sample)]
    assert [f.truth for f in outcome.frames] == [
        p.text for p in sample.parts if isinstance(p, Text) and p.trained
    ]
    assert outcome.question == "Describe it live."
    assert outcome.correct is None


def test_the_model_that_sees_beats_the_blind_and_the_silent_one(boards):
    board = boards["live"]
    f1 = {line.name: line.cells["F1"] for line in board.lines}
    assert f1["model"].value > f1["blind"].value > f1["silent"].value == 0.0
    assert f1["model"].low <= f1["model"].value <= f1["model"].high
    assert board.headlines().keys() == {"f1", "blind_f1", "silent_f1"}


def test_headlines_are_named_after_the_source(boards):
    numbers = summary(boards)
    assert numbers.keys() == {
        "vqa_accuracy", "vqa_blind_accuracy", "vqa_chance", "live_f1", "live_blind_f1", "live_silent_f1",
        "headline", "vqa_not_above_blind",
    }  # fmt: skip
    assert numbers["headline"].startswith("vqa accuracy ")
    assert "silent 0.0 %" in numbers["headline"]


def test_a_type_that_the_blind_twin_answers_as_well_is_named(sources, predictions, capsys):
    guessed = {"model": predictions["vqa"]["model"], "blind": predictions["vqa"]["model"]}
    board = boards_of({"vqa": sources["vqa"]}, {"vqa": guessed}, SETTINGS)["vqa"]
    assert board.not_above_blind == ("color", "shape", "yes_no")
    assert summary({"vqa": board})["vqa_not_above_blind"] == "color, shape, yes_no"
    print_board("vqa", board)
    assert "not above the blind twin: color, shape, yes_no" in capsys.readouterr().out


def test_a_type_is_named_where_the_intervals_overlap(boards):
    for name, columns in (("vqa", ("color", "shape", "yes_no")), ("live", ("F1",))):
        model, blind = (line.cells for line in boards[name].lines[:2])
        apart = {column for column in columns if model[column].low > blind[column].high}
        assert {*columns} - {*boards[name].not_above_blind} == apart
    assert boards["live"].not_above_blind == ()


def test_without_a_blind_model_there_is_no_blind_line(sources, predictions):
    alone = {"vqa": {"model": predictions["vqa"]["model"]}}
    boards = boards_of({"vqa": sources["vqa"]}, alone, SETTINGS)
    assert summary(boards).keys() == {"headline", "vqa_accuracy", "vqa_chance"}


def test_the_files_hold_every_answer(predictions, boards, tmp_path):
    write(tmp_path, predictions, boards)
    assert {path.name for path in tmp_path.iterdir()} == {"results.parquet", "captions.json", "metrics.json"}
    results = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["model"], row["source"]) for row in results] == [
        (model, source)
        for model in ("model", "blind")
        for source, count in (("vqa", 18), ("live", 3))
        for _ in range(count)
    ]
    told = json.loads((tmp_path / "captions.json").read_text())
    assert told == captions(predictions)
    assert [clip["row"] for clip in told["model"]["live"]] == [0, 1, 2]
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["vqa", "live"]


def test_the_table_names_every_line_and_column(boards, capsys):
    for source, board in boards.items():
        print_board(source, board)
    printed = capsys.readouterr().out
    for word in ("model", "blind", "chance", "silent", "color", "yes_no", "mean of types", "F1", "100.0 %"):
        assert word in printed
