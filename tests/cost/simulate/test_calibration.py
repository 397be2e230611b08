"""A machine described from two short runs: what is put in comes out again, and predicts a third run."""

from __future__ import annotations

import pytest

from benchmarks import simulation as benchmark
from benchmarks.simulation import SIZES, Measured, calibrated, compare, described, line
from casa_core.media.images import ImageSettings
from pipelines.cost import estimate as estimating
from pipelines.cost.forecast import Budgets
from pipelines.cost.listing import Listing, PictureSize, RawFile, SourceListing
from pipelines.cost.simulate.simulation import Simulation, simulate
from pipelines.cost.workload import Workload, read_rates
from pipelines.recipe import load_recipe

IMAGES = ImageSettings(patch_size=8, merge_size=2, max_side=64)
TRUE = {
    "gpu_tflops": 0.02,
    "clean_start_s": 2.0,
    "pack_start_s": 1.5,
    "evaluate_start_s": 4.0,
    "answers": 7.0,
}


def source(name: str, rows: int, side: int, per_row: float, *, video: bool) -> SourceListing:
    return SourceListing(
        name=name,
        files=(RawFile(name="a", rows=rows, bytes=rows * 1000),),
        images_per_row=per_row,
        text_tokens_per_row=20.0,
        text_bytes_per_row=60.0,
        media_bytes_per_row=900.0,
        sizes=(PictureSize(width=side, height=side, share=1.0),),
        video=video,
    )


def made_up(name: str, factor: float = 1.0) -> Measured:
    """A run of a machine that is as the simulation has it, at a speed that changes by a factor."""
    size = SIZES[name]
    recipe = load_recipe("quickstart", size.overrides)
    sources = (
        source("vqa", size.rows, 64, 1.0, video=False),
        source("live", size.clips, 48, 16.0, video=True),
    )
    work = Workload(Listing(name="made up", sources=sources), Budgets(text=384, image=512), IMAGES)
    node = described(**TRUE, train_start_s=4.5 * size.workers)
    rates = read_rates(None, ())

    def run_on(*own: SourceListing) -> Simulation:
        return simulate(
            recipe,
            Workload(Listing(name="", sources=own), work.budgets, IMAGES),
            node,
            rates,
            1,
            size.questions,
        )

    whole = run_on(*sources)
    seconds = {stage.name: stage.seconds.value * factor for stage in whole.stages if stage.name != "clean"}
    for own in sources:
        seconds[f"clean-{own.name}"] = run_on(own).stage("clean").seconds.value * factor
    return Measured(size=size, seconds=seconds, wall=seconds, recipe=recipe, work=work)


@pytest.fixture(autouse=True)
def known_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_activations", lambda *_: 2**20)


def test_two_runs_of_a_machine_describe_it_and_predict_the_others():
    node, rates = calibrated(made_up("short"), made_up("medium"))
    for name, value in {**TRUE, "train_start_s": 9.0}.items():
        assert getattr(node, name) == pytest.approx(value, rel=0.02, abs=0.02), name
    for name in ("long", "one worker"):
        for own in compare(name, made_up(name), node, rates):
            assert own["error"] == pytest.approx(0, abs=0.01), own
            assert own["within"]


def test_a_prediction_that_is_far_off_is_reported_as_such():
    node, rates = calibrated(made_up("short"), made_up("medium"))
    slower = made_up("long", factor=2.0)
    lines = compare("long", slower, node, rates)
    assert [own["within"] for own in lines] == [False] * 5
    assert "| no |" in benchmark.report(lines, {"long": slower})


def test_a_line_has_no_start_where_noise_denies_one():
    assert line([1.0, 3.0], [3.0, 5.0]) == (2.0, 1.0)
    assert line([1.0, 3.0], [1.0, 6.0]) == (0.0, 0.5)
    assert line([1.0, 3.0], [6.0, 6.0]) == (0.0, 0.5)
