"""The benchmarks ask an engine the right things and score its answers; it knows colours and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from casa_core.errors import DataError
from casa_core.types import Image, Sample, Text
from pipelines.dag.settings import read_settings
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CleanSample
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks import benchmark_for
from pipelines.evaluate.benchmarks.base import BenchmarkSettings, EvalSample
from pipelines.evaluate.benchmarks.live import Live, live_frames
from pipelines.evaluate.benchmarks.vqa import Vqa, questions
from pipelines.evaluate.inference import chunks, predict_chunk
from pipelines.evaluate.run import captions, print_board, score, summary, write
from tests.support.evaluate.engine import ColourEngine
from tests.support.evaluate.run import EVALUATE, live_rows, vqa_rows, write_clean

SETTINGS = read_settings(BenchmarkSettings, EVALUATE)


def held_out(rows):
    return [
        EvalSample(row=index, sample=clean.sample, meta=clean.meta)
        for index, clean in enumerate(map(CleanSample.from_row, rows))
    ]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return live_rows(3, tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def readers(tmp_path_factory, clips):
    root = tmp_path_factory.mktemp("clean")
    write_clean(root / "vqa", vqa_rows(18))
    write_clean(root / "live", clips)
    write_clean(root / "empty", [])
    return {name: CleanReader(root / name, HELD_OUT) for name in ("vqa", "live", "empty")}


def evaluate_all(readers, settings=SETTINGS):
    rows = []
    for model, engine in (("model", ColourEngine()), ("blind", ColourEngine(blind=True))):
        for chunk in chunks(readers, settings):
            rows += predict_chunk(engine, model, chunk, readers[chunk.source], settings)
    return rows


def test_a_sample_is_evaluated_on_by_the_benchmark_of_its_shape(clips):
    assert benchmark_for(CleanSample.from_row(vqa_rows(1)[0]).sample).name == "vqa"
    assert benchmark_for(CleanSample.from_row(clips[0]).sample).name == "live"
    with pytest.raises(DataError, match="neither a trained answer nor live frames"):
        benchmark_for(Sample(source="s", sample_id="1", parts=(Text(role="user", text="hello"),)))


def test_a_sources_held_out_rows_are_cut_into_its_benchmarks_batches(readers):
    work = chunks(readers, replace(SETTINGS, batch_size=8))
    assert [(c.source, len(c.rows)) for c in work] == [("vqa", 8), ("vqa", 8), ("vqa", 2)] + [("live", 1)] * 3
    assert [row for c in work if c.source == "vqa" for row in c.rows] == list(range(18))


def test_questions_are_asked_together_and_judged_by_exact_match():
    engine = ColourEngine()
    outcomes = Vqa().run(engine, held_out(vqa_rows(18)), SETTINGS)
    assert engine.batches == [18]
    assert all(o.correct for o in outcomes if o.question_type == "color")
    for outcome in outcomes:
        assert outcome.correct == (outcome.answer.lower().rstrip(".") == outcome.truth)
    assert {o.question_type for o in outcomes} == {"color", "shape", "yes_no"}
    assert outcomes[0].question == "what color does it have?"


def test_a_chats_later_question_comes_with_the_true_earlier_turns():
    chat = Sample(
        source="chat",
        sample_id="1",
        parts=(
            Image(data=b"png"),
            Text(role="user", text="first?"),
            Text(role="assistant", text="one", trained=True),
            Text(role="user", text="second?"),
            Text(role="assistant", text="two", trained=True),
        ),
    )
    (first, one), (second, two) = questions(chat)
    assert (one, two) == ("one", "two")
    assert first.parts == chat.parts[:2]
    assert second.parts == chat.parts[:4]


def test_the_blind_model_gets_the_place_of_a_picture_but_no_bytes():
    class Watcher(ColourEngine):
        def generate(self, requests):
            self.images = [p for r in requests for p in r.sample.parts if isinstance(p, Image)]
            return super().generate(requests)

    engine = Watcher(blind=True)
    Vqa().run(engine, held_out(vqa_rows(3)), SETTINGS)
    assert len(engine.images) == 3
    assert all(image.data is None for image in engine.images)


def test_every_line_of_the_score_board_can_be_recounted_from_the_answers(readers):
    rows = evaluate_all({"vqa": readers["vqa"]})
    board = score(rows, SETTINGS)["vqa"]
    model, blind, chance = board.lines
    assert (model.name, blind.name, chance.name) == ("model", "blind", "chance")
    for line in (model, blind):
        for kind in ("color", "shape", "yes_no"):
            marks = [r["correct"] for r in rows if r["model"] == line.name and r["question_type"] == kind]
            assert line.cells[kind].value == sum(marks) / len(marks)
    kinds = ("color", "shape", "yes_no")
    assert model.cells["mean of types"].value == pytest.approx(sum(model.cells[k].value for k in kinds) / 3)
    shapes = [r["truth"] for r in rows if r["model"] == "model" and r["question_type"] == "shape"]
    assert chance.cells["shape"].value == max(map(shapes.count, shapes)) / len(shapes)
    assert model.cells["color"].value == 1.0 > blind.cells["color"].value


def test_a_clip_is_pushed_frame_by_frame_and_its_session_is_closed(clips):
    engine = ColourEngine()
    outcome = Live().run(engine, held_out(clips[:1]), SETTINGS)[0]
    sample = CleanSample.from_row(clips[0]).sample
    assert [f.timestamp for f in outcome.frames] == [image.timestamp for image, _ in live_frames(sample)]
    assert [f.truth for f in outcome.frames] == [
        p.text for p in sample.parts if isinstance(p, Text) and p.trained
    ]
    assert [session.closed for session in engine.sessions] == [True]
    assert outcome.question == "Describe it live."
    assert outcome.correct is None


def test_a_session_is_closed_even_when_a_frame_fails(clips):
    engine = ColourEngine()
    stream = engine.open_session()
    stream.blind = True  # it refuses the frames it is shown
    engine.open_session = lambda query="", *, max_tokens_per_frame=16: stream
    with pytest.raises(AssertionError, match="not to be shown"):
        Live().run(engine, held_out(clips[:1]), SETTINGS)
    assert stream.closed


def test_the_model_that_sees_beats_the_blind_and_the_silent_one(readers):
    board = score(evaluate_all({"live": readers["live"]}), SETTINGS)["live"]
    f1 = {line.name: line.cells["F1"] for line in board.lines}
    assert f1["model"].value > f1["blind"].value > f1["silent"].value == 0.0
    assert f1["model"].low <= f1["model"].value <= f1["model"].high
    assert board.headlines().keys() == {"f1", "blind_f1", "silent_f1"}


def test_headlines_are_named_after_the_source(readers):
    rows = evaluate_all(readers)
    numbers = summary(rows, score(rows, SETTINGS))
    assert numbers.keys() == {
        "vqa_accuracy", "vqa_blind_accuracy", "vqa_chance", "live_f1", "live_blind_f1", "live_silent_f1",
        "live_frame_ms_p50", "live_frame_ms_p95", "headline",
    }  # fmt: skip
    assert numbers["headline"].startswith("vqa accuracy ")
    assert "silent 0.0 %" in numbers["headline"]
    assert numbers["live_frame_ms_p50"] == 10.0


def test_without_a_blind_model_there_is_no_blind_line(readers):
    rows = [row for row in evaluate_all({"vqa": readers["vqa"]}) if row["model"] == "model"]
    assert summary(rows, score(rows, SETTINGS)).keys() == {"headline", "vqa_accuracy", "vqa_chance"}


def test_the_files_hold_every_answer_and_are_the_same_whatever_the_clock_says(readers, tmp_path):
    rows = evaluate_all(readers)
    boards = score(rows, SETTINGS)
    later = [{**row, "frames": [{**f, "latency_s": 9.0} for f in row["frames"]]} for row in rows]
    for folder, content in ((tmp_path / "a", rows), (tmp_path / "b", later)):
        folder.mkdir()
        write(folder, content, boards)
    names = {"results.parquet", "captions.json", "metrics.json"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    results = pq.read_table(tmp_path / "a" / "results.parquet").to_pylist()
    assert len(results) == 2 * (18 + 3)
    told = json.loads((tmp_path / "a" / "captions.json").read_text())
    assert told == captions(rows)
    assert [clip["row"] for clip in told["model"]["live"]] == [0, 1, 2]
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics) == ["vqa", "live"]


def test_the_table_names_every_line_and_column(readers, capsys):
    for source, board in score(evaluate_all(readers), SETTINGS).items():
        print_board(source, board)
    printed = capsys.readouterr().out
    for word in ("model", "blind", "chance", "silent", "color", "yes_no", "mean of types", "F1", "100.0 %"):
        assert word in printed
