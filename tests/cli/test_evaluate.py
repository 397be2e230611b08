"""``casa evaluate`` as a user sees it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from casa_core.analysis.masking import masked_attention
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest
from pipelines.cli.app import app
from pipelines.cli.evaluate import _tables
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.rescoring import rescore
from pipelines.evaluate.results import read_result
from tests.support.data.media import counting_video
from tests.support.evaluate.benchmark_tables import rows
from tests.support.evaluate.checkpoint import TEXTS
from tests.support.evaluate.judge_server import likes_longer, running_judge
from tests.support.evaluate.tables import drawn_rows, write_own
from tests.support.serve.checkpoint import write_checkpoint


def casa(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own(tmp_path_factory.mktemp("own"), drawn_rows(20))


def test_a_benchmark_of_ones_own_is_scored_and_every_answer_kept(
    tiny_checkpoint: Path, own: Path, tmp_path: Path
):
    options = (
        tiny_checkpoint,
        "--benchmarks",
        own,
        "--store",
        tmp_path,
        "--max-new-tokens",
        4,
        "--name",
        "m",
    )
    printed = casa(*options)
    assert "Drawn" in printed
    page = (tmp_path / "evaluations" / "m" / "index.html").read_text()
    assert page.count("data:image/jpeg") == 20
    samples = pq.read_table(tmp_path / "evaluations" / "m" / "drawn" / "samples.parquet").to_pylist()
    assert [row["truths"] for row in samples] == [[("red", "green", "blue")[at % 3]] for at in range(20)]
    [result] = json.loads(casa(*options, "--json").partition("[\n")[2].join(["[\n", ""]))
    assert result["score"]["value"] == 100 * np.mean([row["score"] for row in samples])
    assert set(result["score"]["parts"]) == {"one", "two"}
    assert result["throughput"]["asked"] == sum(not row["answer"].strip() for row in samples), (
        "others are known"
    )
    assert result["decoding"]["sampling"]["max_new_tokens"] == 4


def test_rows_without_an_answer_are_counted_and_named(tiny_checkpoint: Path, tmp_path: Path):
    drawn = drawn_rows(9)
    drawn[2]["image"]["bytes"] = drawn[2]["image"]["bytes"][:50]
    drawn[5]["question"] = None
    file = write_own(tmp_path / "own", drawn)
    printed = casa(tiny_checkpoint, "--benchmarks", file, "--store", tmp_path, "--name", "m")
    assert "1 without an answer: Row 5 of drawn cannot be used." in printed
    samples = pq.read_table(tmp_path / "evaluations" / "m" / "drawn" / "samples.parquet").to_pylist()
    assert [row["index"] for row in samples if row["error"]] == [2, 5]
    assert (samples[2]["score"], samples[5]["score"]) == (0.0, None)


def test_without_a_checkpoint_the_benchmarks_are_listed():
    assert "chartqa" in casa()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--benchmarks", "chartq"], "Did you mean `chartqa`?"),
        (["--benchmarks", "mme,mme"], "named twice"),
        (["--benchmarks", "mme", "--data", "gqa=x"], "not evaluated"),
        (["--benchmarks", "mme", "--data", "mme=/nowhere"], "no files of mme in /nowhere"),
        (["--benchmarks", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_named_before_any_work(tiny_checkpoint: Path, arguments: list[str], says: str):
    assert says in casa(tiny_checkpoint, *arguments, code=2)


def test_a_cluster_that_is_not_there_is_named_at_once(tiny_checkpoint: Path, own: Path, tmp_path: Path):
    options = (tiny_checkpoint, "--benchmarks", own, "--store", tmp_path, "--address", "127.0.0.1:1")
    assert "There is no Ray cluster at 127.0.0.1:1" in casa(*options, code=1)


def test_tables_of_another_layout_are_refused_before_any_work(
    tiny_checkpoint: Path, own: Path, tmp_path: Path
):
    empty = pq.read_table(own.with_suffix(".parquet")).slice(0, 0)
    pq.write_table(empty, tmp_path / "drawn.parquet")
    other = tmp_path / "test-0.parquet"
    pq.write_table(pa.table({"question": ["a"], "image": [1]}), other)
    for arguments, says in (
        (["--benchmarks", own, "--data", f"drawn={tmp_path / 'drawn.parquet'}"], "have no rows"),
        (["--benchmarks", "mme", "--data", f"mme={other}"], "there is no column"),
        (["--benchmarks", "mme", "--data", f"mme={tmp_path}"], "no files of mme"),
    ):
        assert says in casa(tiny_checkpoint, *arguments, code=2)


def write_live(folder: Path, count: int = 6) -> Path:
    """LiveSports-3K-CC in small: events of one video of four seconds."""
    first = rows("livesports")[0]
    folder.mkdir()
    (folder / "videos").mkdir()
    counting_video(folder / "videos" / "4hGQ.mp4", frames=16, fps=4)
    with (folder / "LiveSports-3K-CC-test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        for at in range(count):
            said = {"event_asr_text": f"goal {at} " * 100}
            writer.writerow(first | {"event_id": at, "begin": at / 4, "end": at / 4 + 1} | said)
    return folder


def test_a_live_commentary_is_judged_and_a_judge_that_is_not_there_costs_no_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = write_checkpoint(tmp_path / "model", TEXTS, context=4096)
    data = f"livesports={write_live(tmp_path / 'live')}"
    options = [model, "--benchmarks", "livesports", "--data", data, "--store", tmp_path, "--name", "m"]
    assert "none is named" in casa(*options, code=2)
    assert "by halves" in casa(*options, "--judge", "http://127.0.0.1:9/v1", code=2)
    gone = ("--judge", "http://127.0.0.1:9/v1", "--judge-model", "j")
    monkeypatch.setattr("pipelines.storage.retry.time.sleep", lambda seconds: None)
    assert "cannot be asked" in casa(*options, *gone, code=2)
    assert not (tmp_path / "answers").exists()
    with running_judge(likes_longer) as judge:
        printed = casa(*options, "--judge", judge.url, "--judge-model", "j")
        assert "at most 12 calls" in printed
        assert "12 of 12 judgements" in printed
        folder = tmp_path / "evaluations" / "m" / "livesports"
        result = json.loads((folder / "result.json").read_text())
        assert result["score"]["metric"] == "win_rate"
        assert result["score"]["value"] == 0.0, "the person spoke longer"
        counts = result["judge"]["counts"]
        assert (counts["lost"], counts["ties"], counts["asked"]) == (12, 0, 12)
        assert "The judge" in (folder.parent / "index.html").read_text()
        _, after = rescore(folder)
        assert (after.score.value, after.judge["counts"]["lost"]) == (0.0, 12)
        assert result["decoding"]["mode"] == "streaming"
        assert result["published"] == [], "they are against another model's commentary"
        assert pq.read_table(folder / "judgements.parquet").num_rows == 12
        against_itself = casa(
            *options, "--judge", judge.url, "--judge-model", "j", "--baseline", folder, "--json"
        )
        assert '"ties": 12' in against_itself
        assert "CASA-Qwen2_5-VL-3B, 20k steps" in against_itself


def test_a_sweep_of_resolutions_gives_a_result_for_each_beside_the_papers(
    tiny_checkpoint: Path, own: Path, tmp_path: Path
):
    options = (tiny_checkpoint, "--benchmarks", own, "--store", tmp_path, "--name", "m", "--limit", "6")
    casa(*options)
    casa(*options, "--max-side", "16,32")
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("result.json")}
    assert found.keys() == {"drawn", "drawn@16", "drawn@32"}
    assert {name: one["decoding"]["max_side"] for name, one in found.items()} == {
        "drawn": None, "drawn@16": 16, "drawn@32": 32,
    }  # fmt: skip
    assert found["drawn@16"]["title"] == "Drawn at 16"
    assert len({one["checkpoint"]["fingerprint"] for one in found.values()}) == 3
    tokens = {
        name: [row["image_tokens"] for row in read_samples(tmp_path / "evaluations" / "m" / name)]
        for name in found
    }
    assert set(tokens["drawn@16"]) == {1}, "16 by 16 pixels are one token"
    assert set(tokens["drawn@32"]) <= {1, 2, 3, 4}
    assert max(tokens["drawn"]) > 1
    for wrong, says in (("3", "leaves no room"), ("wide", "no numbers")):
        assert says in casa(*options, "--max-side", wrong, code=2)


def test_masking_is_part_of_what_an_answer_depends_on(tiny_checkpoint: Path, own: Path, tmp_path: Path):
    model = write_checkpoint(tmp_path / "model", TEXTS, kind="casa")
    options = (model, "--benchmarks", own, "--store", tmp_path, "--name", "m")
    casa(*options)
    casa(*options, "--mask", "self,random_text")
    folder = tmp_path / "evaluations" / "m"
    answers = {
        name: [row["answer"] for row in read_samples(folder / name)]
        for name in ("drawn", "drawn@self", "drawn@random_text")
    }
    assert answers["drawn@self"] != answers["drawn"] != answers["drawn@random_text"]
    assert read_result(folder / "drawn@self").decoding["mask"] == "self"
    engine = Engine.from_pretrained(model)
    source = _tables(str(own), [], None, None)[0]
    with masked_attention(engine.model, "self"):
        for question, answer in zip(source.read(0, 6), answers["drawn@self"][:6], strict=True):
            assert isinstance(question, Question)
            [alone] = engine.generate([GenerationRequest(sample=question.sample)])
            assert alone.text == answer
    assert "no masking 'all'" in casa(*options, "--mask", "all", code=2)
    unmaskable = (tiny_checkpoint, *options[1:], "--mask", "self")
    assert "Nothing can be masked" in casa(*unmaskable, code=2)


def test_a_long_video_is_fitted_to_its_image_budget_as_training_fits_it(tmp_path: Path):
    model = write_checkpoint(tmp_path / "model", TEXTS, context=4096)
    (tmp_path / "data" / "data").mkdir(parents=True)
    counting_video(tmp_path / "data" / "v.mp4", frames=48, fps=4)
    table = {"video_name": ["v"], "question": ["what?"], "candidates": [["red", "green"]], "answer": ["A"]}
    pq.write_table(pa.table(table | {"task_type": ["order"]}), tmp_path / "data" / "data" / "test-0.parquet")
    options = (model, "--benchmarks", "mlvu", "--data", f"mlvu={tmp_path / 'data'}", "--store", tmp_path)
    tokens = []
    for budget in ("100000", "200", "30"):
        casa(*options, "--output", tmp_path / budget, "--max-video-tokens", budget)
        [row] = read_samples(tmp_path / budget / "mlvu")
        tokens.append(row["image_tokens"])
    assert tokens == [24 * 16, 24 * 4, 7 * 4], "all frames, then smaller ones, then as many as fit"
