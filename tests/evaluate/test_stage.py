"""The evaluate stage over real Ray Data actors, with tiny untrained models."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from casa_core.errors import DataError, StoreError
from pipelines.dag.context import StageContext
from pipelines.evaluate.held_out.run import run_stage
from tests.support.evaluate.checkpoint import write_checkpoint
from tests.support.evaluate.run import EVALUATE, live_rows, vqa_rows, write_clean
from tests.support.own_ray import own_ray

QUESTIONS, CLIPS, FRAMES = 12, 2, 8


@pytest.fixture(scope="module")
def local_ray():
    """A small Ray of this module's own."""
    with own_ray(4):
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    write_checkpoint(root / "train" / "model", blind=False)
    write_checkpoint(root / "blind" / "model", blind=True)
    write_clean(root / "vqa", vqa_rows(QUESTIONS))
    write_clean(root / "live", live_rows(CLIPS, root))
    write_clean(root / "none", [])
    return {role: root / role for role in ("train", "blind", "vqa", "live", "none")}


def context(
    inputs, output, *, sources=("vqa", "live"), models=("train", "blind"), workers=2, progress=lambda *a: None
):
    output.mkdir(exist_ok=True)
    return StageContext(
        name="evaluate",
        settings={"evaluate": EVALUATE, "sources": list(sources)},
        placement={"data": {"workers": workers}, "store": str(output.parent / "store")},
        inputs={role: inputs[role] for role in sorted({"train", "blind", *sources}) if role in inputs},
        output=output,
        progress=progress,
    )


@pytest.fixture(scope="module")
def evaluated(local_ray, inputs, tmp_path_factory):
    """The stage's output folder, its summary, and the progress it reported."""
    output, steps = tmp_path_factory.mktemp("evaluated"), []
    numbers = run_stage(context(inputs, output, progress=lambda *step: steps.append(step)))
    return output, numbers, steps


def test_both_models_are_evaluated_on_everything_and_the_headlines_follow(evaluated):
    output, numbers, steps = evaluated
    for name in (
        "vqa_accuracy",
        "vqa_blind_accuracy",
        "vqa_chance",
        "live_f1",
        "live_blind_f1",
        "live_silent_f1",
    ):
        assert 0.0 <= numbers[name] <= 1.0
    assert steps[-1][:2] == (2 * (QUESTIONS + CLIPS), 2 * (QUESTIONS + CLIPS))
    results = pq.read_table(output / "results.parquet").to_pylist()
    assert [(row["model"], row["source"], row["row"]) for row in results] == [
        (model, source, row)
        for model in ("model", "blind")
        for source, count in (("vqa", QUESTIONS), ("live", CLIPS))
        for row in range(count)
    ]
    captions = json.loads((output / "captions.json").read_text())
    assert [len(clip["frames"]) for clip in captions["blind"]["live"]] == [FRAMES] * CLIPS


@pytest.mark.slow
def test_a_models_predictions_do_not_depend_on_the_number_of_actors(evaluated, inputs, tmp_path):
    """Evaluated alone, it gets both workers; beside its blind twin it had one."""
    alone = {role: folder for role, folder in inputs.items() if role != "blind"}
    run_stage(context(alone, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.json", "metrics.json", "results.parquet"]
    both = [
        row for row in pq.read_table(evaluated[0] / "results.parquet").to_pylist() if row["model"] == "model"
    ]
    assert pq.read_table(tmp_path / "results.parquet").to_pylist() == both
    captions = [
        json.loads((folder / "captions.json").read_text())["model"] for folder in (tmp_path, evaluated[0])
    ]
    assert captions[0] == captions[1]
    boards = [json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, evaluated[0])]
    assert boards[0]["live"]["lines"] == [
        line for line in boards[1]["live"]["lines"] if line["name"] != "blind"
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_what_an_actor_refuses_reaches_the_user_in_its_own_words(inputs, tmp_path):
    with pytest.raises(StoreError) as refused:
        run_stage(context({**inputs, "train": tmp_path / "nothing"}, tmp_path / "out"))
    assert refused.value.what == f"{tmp_path / 'nothing' / 'model'} is not a finished checkpoint."
    assert "train stage" in refused.value.remedy


def test_nothing_to_evaluate_on_is_refused_with_a_remedy(inputs, tmp_path):
    with pytest.raises(DataError, match="nothing to evaluate on"):
        run_stage(context(inputs, tmp_path, sources=("none",)))
