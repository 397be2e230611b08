"""Recipes that lie over another one, and recipes whose training goes on from another one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from casa_core.errors import ConfigError
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.plan import StageSpec, plan
from pipelines.recipe import build_stages, load_recipe

VERSIONS = dict.fromkeys(STAGE_MODULES, "1")


def write(folder: Path, name: str, **values: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **values}))
    return path


def stages_of(path: Path, *overrides: str) -> dict[str, StageSpec]:
    return {stage.name: stage for stage in build_stages(load_recipe(path, overrides))}


def test_a_recipe_says_only_where_it_differs_from_its_base(tmp_path: Path):
    path = write(
        tmp_path,
        "short",
        base="quickstart",
        train={"steps": 300, "image_video_ratio": [1, 0]},
        data={"sources": {"live": None}},
    )
    recipe, base = load_recipe(path, ["train.warmup_steps=7"]), load_recipe("quickstart")
    assert (recipe.name, recipe.train.steps, recipe.train.warmup_steps) == ("short", 300, 7)
    assert recipe.train.learning_rate == base.train.learning_rate
    assert list(recipe.data.sources) == ["vqa"]
    assert recipe.pack == base.pack


def test_null_in_the_place_of_a_value_is_no_silent_return_to_the_default(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`train.warmup_steps` = None cannot work"):
        load_recipe(write(tmp_path, "short", base="quickstart", train={"warmup_steps": None}))
    unlimited = load_recipe(write(tmp_path, "free", base="quickstart", train={"clip_grad_norm": None}))
    assert unlimited.train.clip_grad_norm == 0


def test_a_base_may_lie_beside_the_recipe_and_have_one_itself(tmp_path: Path):
    write(tmp_path, "middle", base="quickstart", seed=5)
    recipe = load_recipe(write(tmp_path, "top", base="middle.yaml", train={"steps": 300}))
    assert (recipe.seed, recipe.train.steps, recipe.name) == (5, 300, "top")


def test_recipes_that_are_each_others_base_are_refused(tmp_path: Path):
    write(tmp_path, "one", base="two.yaml")
    with pytest.raises(ConfigError, match=r"(?s)its own base.*two.yaml → one.yaml → two.yaml"):
        load_recipe(write(tmp_path, "two", base="one.yaml"))


def test_an_unknown_base_is_refused_with_the_closest_name(tmp_path: Path):
    with pytest.raises(ConfigError, match="Did you mean `quickstart`"):
        load_recipe(write(tmp_path, "mine", base="quickstrat"))


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """Tuned on clips alone, from a model that has seen pictures and clips."""
    first = write(tmp_path, "first", base="quickstart")
    return write(
        tmp_path,
        "second",
        base="quickstart",
        model={"weights": {"recipe": str(first)}},
        data={"sources": {"vqa": None}},
        train={"steps": 200, "image_video_ratio": [0, 1]},
        evaluate={"baselines": []},
    )


def test_the_earlier_recipes_stages_come_first_and_shared_ones_once(chained: Path):
    stages = stages_of(chained)
    assert list(stages) == [
        *("corpus-vqa", "clean-vqa", "pack-first", "train-first"),
        *("corpus-live", "clean-live", "pack", "train", "evaluate", "deploy", "report"),
    ]
    assert stages["pack-first"].inputs == {"vqa": "clean-vqa", "live": "clean-live"}
    assert stages["train-first"].inputs == {"pack": "pack-first", "vqa": "clean-vqa", "live": "clean-live"}
    assert stages["train"].inputs == {"pack": "pack", "live": "clean-live", "start": "train-first"}
    assert stages["report"].inputs.keys() == {"corpus-live", "clean-live", "pack", "train", "evaluate"}


def test_an_earlier_stage_is_the_one_its_own_run_has_made(chained: Path, tmp_path: Path):
    own = {
        s.name: s.fingerprint
        for s in plan(build_stages(load_recipe(tmp_path / "first.yaml")), tmp_path, VERSIONS)
    }
    joined = {s.name: s.fingerprint for s in plan(build_stages(load_recipe(chained)), tmp_path, VERSIONS)}
    assert joined["train-first"] == own["train"]
    assert joined["clean-live"] == own["clean-live"]


def test_where_a_run_executes_holds_for_the_earlier_stages_too(chained: Path):
    stages = stages_of(chained, "where.train.workers=2")
    assert stages["train-first"].placement["train"]["workers"] == 2


def test_three_recipes_chain(chained: Path, tmp_path: Path):
    third = write(
        tmp_path,
        "third",
        base="second.yaml",
        model={"weights": {"recipe": str(chained)}},
        train={"steps": 210},
    )
    stages = stages_of(third)
    assert stages["train"].inputs["start"] == "train-second"
    assert stages["train-second"].inputs["start"] == "train-first"
    assert list(stages).index("train-first") < list(stages).index("train-second")


def test_recipes_that_start_from_each_other_are_refused(chained: Path, tmp_path: Path):
    write(tmp_path, "first", base="quickstart", model={"weights": {"recipe": str(chained)}})
    with pytest.raises(ConfigError, match="starts from itself"):
        stages_of(chained)


def test_going_on_with_another_fusion_is_refused_before_anything_runs(chained: Path):
    with pytest.raises(ConfigError, match=r"(?s)cannot go on from first.*kind is 'casa'.*'cross_attention'"):
        stages_of(chained, "model.fusion.kind=casa")


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ("{}", "exactly one of language_model, checkpoint, recipe"),
        ("{recipe: a, checkpoint: b}", "exactly one of"),
        ("{recipe: a, revision: b}", "go with language_model"),
        ("{language_model: org/name}", "backbone tiny has none"),
    ],
)
def test_weights_come_from_one_place(weights: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe("quickstart", [f"model.weights={weights}"])


def test_a_checkpoint_counts_by_content_and_not_by_place(tmp_path: Path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("weights")
    here, there = (
        stages_of(Path("quickstart"), f"model.weights.checkpoint={tmp_path / name}")["train"]
        for name in ("one", "other")
    )
    assert here.settings == there.settings
    assert here.location["checkpoint"] != there.location["checkpoint"]
    with pytest.raises(ConfigError, match="There are no weights"):
        stages_of(Path("quickstart"), f"model.weights.checkpoint={tmp_path / 'gone'}")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["train.precision=bf16", "where.train.zero_stage=0"], "no float32 master weights"),
        (["where.train.offload=parameters"], "needs zero_stage 3"),
        (["where.train.offload=optimizer", "where.train.zero_stage=0"], "needs zero_stage 1"),
        (["train.adam_betas=[0.9,1.0]"], "adam_betas"),
    ],
)
def test_settings_that_deepspeed_cannot_honour_are_refused(overrides: list[str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe("quickstart", overrides)
