"""What training takes, before it is begun: memory, time, what is refused; and dry runs of every recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.models.helium import HeliumConfig
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from casa_core.hardware import GPUS, find_gpu, peak_tflops
from pipelines.cli.app import app
from pipelines.cost import estimate as estimating
from pipelines.cost.estimate import check_fits, estimate
from pipelines.cost.workload import read_rates
from pipelines.recipe.load import load_recipe
from pipelines.recipe.where import TrainWorkers
from tests.support.paths import ROOT

PUBLISHED = sorted(
    path.stem
    for path in (ROOT / "pipelines" / "recipes").glob("*.yaml")
    if path.stem.startswith(("ca-", "casa-", "helium1-"))
)
GIB = 2**30


def casa(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: DeepSpeed does not survive a second process group in one."""
    command = [str(Path(sys.executable).with_name("casa")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture
def large_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 GiB a sequence; a fifteenth with checkpointing."""

    def kept(recipe: Any, placement: TrainWorkers, shape: Any, sequences: int) -> int:
        return 90 * GIB * sequences // (15 if placement.gradient_checkpointing else 1)

    monkeypatch.setattr(estimating, "_activations", kept)


def test_weights_in_a_folder_count_with_their_own_sizes(tmp_path: Path):
    own = HeliumConfig(hidden_size=96, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4)
    own.save_pretrained(tmp_path)
    recipe = load_recipe("casa-helium1-parallel", [f"model.weights.language_model={tmp_path}"])
    config = estimating.full_config(recipe.model)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (96, 5)
    assert config.vision_config.hidden_size == 1280, "the tower is still the published one"
    assert config.fusion_settings.kind == "casa"

    config.save_pretrained(tmp_path / "fused")
    started = load_recipe("casa-helium1-parallel", [f"model.weights={{checkpoint: {tmp_path / 'fused'}}}"])
    assert estimating.full_config(started.model).text_config.hidden_size == 96


def test_there_are_seventeen_published_recipes():
    assert len(PUBLISHED) == 17


@pytest.mark.usefixtures("large_activations")
@pytest.mark.parametrize(
    ("gpu", "overrides", "remedy"),
    [
        ("H100", [], r"--set where.train.gradient_checkpointing=true` makes it about 12 GiB"),
        (
            "H100",
            ["where.train.sequences_per_forward=2", "where.train.gradient_checkpointing=true"],
            None,
        ),
        (
            "A100-40",
            ["where.train.sequences_per_forward=null", "where.train.gradient_checkpointing=true"],
            None,
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_smallest_change_that_makes_it_fit(
    gpu: str, overrides: list[str], remedy: str | None
):
    recipe = load_recipe("casa-helium1-before", overrides)
    found = estimate(recipe, find_gpu(gpu))
    if remedy is None:
        assert found.fits
        check_fits(found, recipe)
        return
    complaint = rf"(?s)casa-helium1-before needs about \d+ GiB per GPU, and a {gpu} has \d+.*{remedy}"
    with pytest.raises(ConfigError, match=complaint):
        check_fits(found, recipe)


@pytest.mark.usefixtures("large_activations")
def test_where_nothing_helps_the_budgets_are_named():
    recipe = load_recipe("casa-helium1-before", ["where.train.gradient_checkpointing=true"])
    tight = GPUS["A100-40"].__class__("small", 4, 100, 1000)
    with pytest.raises(
        ConfigError, match=r"Lower pack\.image_tokens or pack\.text_tokens, or take a larger GPU"
    ):
        check_fits(estimate(recipe, tight), recipe)


@pytest.mark.usefixtures("large_activations")
def test_more_gpus_shard_more_and_accumulate_less_in_as_many_operations():
    recipe = load_recipe("casa-helium1-before")
    on_64, on_16 = (estimate(recipe, find_gpu("H100"), gpus) for gpus in (64, 16))
    assert (on_64.forwards, on_16.forwards) == (2, 8)
    assert on_16.memory.optimizer == pytest.approx(4 * on_64.memory.optimizer, rel=0.01)
    assert on_16.flops == on_64.flops
    assert on_16.seconds() == pytest.approx(4 * on_64.seconds())
    assert on_64.tokens == {"image": (128 * 2048, 128 * 20480)}


@pytest.mark.usefixtures("large_activations")
def test_the_papers_days_come_to_the_rate_that_is_assumed():
    """B.1: three days of 64 H100 for 100,000 steps from Helium1-2B."""
    found = estimate(load_recipe("casa-helium1-before"), find_gpu("H100"))
    assert found.seconds(0.14) / 86_400 == pytest.approx(3, rel=0.05)


def test_an_unknown_gpu_is_refused_and_devices_are_known_by_cudas_names():
    with pytest.raises(ConfigError, match=r"(?s)no GPU called 'H999'.*Known: A100-40, A100"):
        find_gpu("H999")
    assert find_gpu("h100") is GPUS["H100"]
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops("NVIDIA A100-SXM4-40GB") == 312
    assert peak_tflops("Some other card") is None


def test_the_command_shows_memory_by_part_and_the_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimating, "_activations", lambda *_: GIB)
    shown = CliRunner().invoke(app, ["plan", "casa-qwen-video", "--training", "--gpu", "H200"])
    assert shown.exit_code == 0
    for text in ("parameters", "gradients", "optimizer", "fits H200", "15,000 steps"):
        assert text in shown.stdout
    answered = CliRunner().invoke(app, ["plan", "casa-qwen-video", "--training", "--json", "--gpus", "32"])
    found = json.loads(answered.stdout)
    assert found["workers"] == 32
    assert found["memory_bytes"]["activations"] == GIB
    assert found["fits"] is True
    parts = ("parameters", "gradients", "optimizer", "activations", "buffers")
    assert found["memory_bytes"]["total"] == sum(found["memory_bytes"][part] for part in parts)


@pytest.mark.usefixtures("large_activations")
def test_the_command_ends_with_2_where_it_does_not_fit():
    refused = CliRunner().invoke(app, ["plan", "casa-helium1-before", "--training"])
    assert refused.exit_code == 2
    assert "does not fit H100" in refused.stdout
    assert "where.train.gradient_checkpointing=true" in refused.stderr


def dry_run(recipe: str, *overrides: str) -> dict[str, Any]:
    """The JSON that a dry run prints."""
    sets = [part for override in overrides for part in ("--set", override)]
    done = casa("train", recipe, "--dry-run", "--json", *sets)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dry_run_takes_a_step_of_each_kind_with_the_recipes_budgets():
    whole = dry_run("quickstart", "train.sequences_per_step=4", "where.train.workers=2")
    image, video = whole["steps"]
    assert (image["kind"], video["kind"]) == ("image", "video")
    assert (image["text_tokens"], image["image_tokens"]) == (2 * 1152, 2 * 320)
    assert (video["text_tokens"], video["image_tokens"]) == (4 * 1152, 4 * 320)
    assert image["rates"]["new"] == pytest.approx(1.5e-3 / 40)
    assert video["rates"]["new"] == pytest.approx(1.5e-3 / 20)
    assert set(whole["schedule"]) == {"1", "40", "420", "720", "840"}
    assert whole["schedule"]["420"]["new"] == 1.5e-3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PUBLISHED)
def test_every_published_recipe_takes_two_steps_of_its_real_budgets(recipe: str):
    loaded = load_recipe(recipe)
    whole = dry_run(recipe)
    for step in whole["steps"]:
        budget = loaded.pack if step["kind"] == "image" else loaded.pack.video or loaded.pack
        assert step["forwards"] == 2
        assert step["text_tokens"] == 2 * budget.text_tokens
        assert 0.9 < step["image_tokens"] / (2 * budget.image_tokens) <= 1
        assert step["grad_norm"] > 0
    assert whole["schedule"][str(loaded.train.warmup_steps)]["new"] == 1e-4
    assert whole["schedule"][str(loaded.train.steps)]["new"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PUBLISHED)
def test_every_published_recipe_fits_an_h100_by_the_estimate(recipe: str):
    done = casa("plan", recipe, "--training", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["workers"] == 64
    assert 10 * GIB < found["memory_bytes"]["total"] < 74 * GIB


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"rates": 3}'])
def test_a_file_that_holds_no_rates_is_refused_with_the_way_to_one(tmp_path: Path, content: str):
    file = tmp_path / "rates.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"rates\.json holds no rates") as caught:
        read_rates(file, ())
    assert "benchmarks.data_rates" in caught.value.remedy


def test_an_estimate_that_was_made_before_imports_no_model(tmp_path: Path):
    """To import the model and to run the small ones is most of the time that a plan takes."""
    program = (
        "import sys\n"
        "from casa_core.hardware import find_gpu\n"
        "from pipelines.cost.estimate import estimate\n"
        "from pipelines.recipe import load_recipe\n"
        "print(estimate(load_recipe('helium1-qformer32'), find_gpu('H100')))\n"
        "print(sorted({'torch._dynamo', 'casa_core.model', 'deepspeed', 'ray'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=True,
        ).stdout.splitlines()
        for _ in range(2)
    )
    assert first[0] == second[0]
    assert "casa_core.model" in first[1]
    assert second[1] == "[]"
