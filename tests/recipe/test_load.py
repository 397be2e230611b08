"""Recipes: what is accepted, and how everything else is refused."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from casa_core.errors import ConfigError
from pipelines.recipe import Recipe, list_recipes, load_recipe
from pipelines.recipe.explain import setting_names
from pipelines.recipe.load import RECIPES
from pipelines.recipe.model import Train
from pipelines.text_format import did_you_mean


def refusal(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe("quickstart", overrides)
    return caught.value


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_that_comes_with_the_project_is_valid(name: str):
    assert load_recipe(name).name


def test_the_quickstart_says_what_its_file_says():
    recipe = load_recipe("quickstart")
    written = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    assert recipe.train.steps == written["train"]["steps"]
    assert recipe.train.learning_rate == float(written["train"]["learning_rate"])
    assert recipe.where.serve.host == "127.0.0.1"
    assert list(recipe.data.sources) == list(written["data"]["sources"])


def test_a_recipe_can_be_a_file_anywhere(tmp_path: Path):
    values = yaml.safe_load((RECIPES / "quickstart.yaml").read_text()) | {"name": "mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"


def test_overrides_are_read_as_yaml():
    recipe = load_recipe(
        "quickstart",
        ["train.learning_rate=1e-3", "train.image_video_ratio=[1, 1]", "model.fusion.layers=2"],
    )
    assert recipe.train.learning_rate == 1e-3
    assert recipe.train.image_video_ratio == [1, 1]
    assert recipe.model.fusion.layers == 2


@pytest.mark.parametrize(
    ("override", "path", "closest"),
    [
        ("train.stepz=3", "train.stepz", "train.steps"),
        ("trian.steps=3", "trian", "train"),
        ("steps=3", "steps", "train.steps"),
        ("where.ray.adress=local", "where.ray.adress", "where.ray.address"),
        ("data.sources.vqa.make.train_row=3", "data.sources.vqa.make.train_row", "train_rows"),
        ("model.fusion.layer=all", "model.fusion.layer", "model.fusion.layers"),
        ("deploy.limits.body_byte=3", "deploy.limits.body_byte", "deploy.limits.body_bytes"),
        ("deploy.access.host=[a]", "deploy.access.host", "deploy.access.hosts"),
    ],
)
def test_a_wrong_key_is_refused_with_its_path_and_the_closest_name(override: str, path: str, closest: str):
    error = refusal(override)
    assert f"`{path}`" in error.what
    assert closest in error.remedy


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("train.steps=many", "train.steps", "integer"),
        ("train.steps=1.5", "train.steps", "integer"),
        ("train.steps=0", "train.steps", "greater than or equal to 1"),
        ("train.learning_rate=-1.0", "train.learning_rate", "greater than 0"),
        ("train.learning_rate=.nan", "train.learning_rate", "finite"),
        ("train.image_video_ratio=[1]", "train.image_video_ratio", "at least 2"),
        ("data.max_failures=2.0", "data.max_failures", "less than or equal to 1"),
        ("where.serve.port=80", "where.serve.port", "1024"),
        ("where.train.zero_stage=4", "where.train.zero_stage", "3"),
        ("model.fusion.layers=0", "model.fusion.layers", "'all', or expected greater than or equal to 1"),
        ("model=tiny", "model", "backbone"),
        ("name=A name", "name", "pattern"),
        ("where.ray.address=head:8265", "where.ray.address", "http://"),
        ("where.store=ftp://host/runs", "where.store", "folder"),
        ("deploy.limits.sessions=0", "deploy.limits.sessions", "greater than or equal to 1"),
        ("deploy.limits.body_seconds=.inf", "deploy.limits.body_seconds", "finite"),
        ("deploy.access.keys=keys.json", "deploy.access.keys", "relative path"),
        ("deploy.access.hosts=['https://a.org']", "deploy.access.hosts.0", "without scheme"),
        ("deploy.access.origins=[a.org]", "deploy.access.origins.0", "a scheme and a host"),
    ],
)
def test_a_wrong_type_or_value_is_refused_with_what_was_expected(override: str, path: str, expected: str):
    error = refusal(override)
    assert f"`{path}`" in error.what
    assert expected in error.why


@pytest.mark.parametrize(
    ("override", "path", "choice"),
    [
        ("model.fusion.kind=cross_atention", "model.fusion.kind", "cross_attention"),
        ("model.fusion.placement=paralel", "model.fusion.placement", "parallel"),
        ("model.backbone=tinny", "model.backbone", "tiny"),
        ("data.sources.vqa.reader=finevison", "data.sources.vqa.reader", "finevision"),
        ("data.sources.vqa.make.generator=easyvqa", "data.sources.vqa.make.generator", "easy_vqa"),
        ("evaluate.baselines=[blnd]", "evaluate.baselines.0", "blind"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_closest_one(override: str, path: str, choice: str):
    error = refusal(override)
    assert f"`{path}`" in error.what
    assert f"'{choice}'" in error.why
    assert f"`{choice}`" in error.remedy


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.steps=100"], "warmup_steps + decay_steps"),
        (["where.train.workers=3"], "cannot be shared evenly"),
        (["where.train.blind_workers=3"], "where.train.blind_workers = 3"),
        (["where.ray.num_cpus=1", "where.train.workers=2"], "wait for ever"),
        (
            ["where.ray.num_cpus=1", "where.train.workers=1", "where.train.blind_workers=2"],
            "lower train.blind_workers",
        ),
        (["pack.max_side=512"], "image tokens"),
        (["pack.max_side=70"], "multiple of 16"),
        (["deploy.replicas={min: 3, max: 2}"], "more than max"),
        (["data.sources.vqa.fps=2.0"], "still pictures"),
        (["data.sources.vqa.make.test_rows=100"], "a multiple of 24"),
        (["data.sources.vqa.make.test_rows=6000"], "less than or equal to 5016"),
        (["data.sources.live.make.fps=11"], "a multiple of 2"),
        (["data.sources.live.make.fps=4"], "greater than or equal to 10"),
        (["data.sources.live.make.seconds=1.5"], "greater than or equal to 2"),
        (["data.sources.live.make.seconds=8.1"], "a multiple of 0.5"),
        (["data.sources.live.make={generator: reading, test_rows: 100}"], "a multiple of 3"),
        (["data.sources.vqa.path=/data"], "exactly one"),
        (["data.sources.vqa.reader=live_whisperx"], "writes the layout"),
        (["data.sources={live: {reader: live_whisperx, path: x}}"], "has any picture"),
        (["data.sources.train={reader: finevision, path: x}"], "cannot be called train"),
        (["train.image_video_ratio=[0, 0]"], "nothing to train on"),
        (["where.timeouts.trian=6h"], "no stage is called trian"),
        (["where.timeouts.train=6"], "expected string"),
        (["where.timeouts.train=6 hours"], "no duration"),
        (["where.timeouts.train=0s"], "no duration"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_the_reason(overrides: list[str], says: str):
    assert says in str(refusal(*overrides))


def test_a_batch_that_no_step_takes_need_not_be_shared_evenly():
    overrides = ["train.image_video_ratio=[1, 0]", "train.videos_per_step=3", "where.train.workers=2"]
    assert load_recipe("quickstart", overrides).train.videos_per_step == 3
    uneven = refusal("train.videos_per_step=3", "where.train.workers=2")
    assert "cannot be shared evenly" in str(uneven)


def test_several_mistakes_are_reported_at_once():
    error = refusal("train.steps=abc", "trian.x=3")
    assert "2 settings" in error.what
    assert "train.steps" in error.why
    assert "trian" in error.why


@pytest.mark.parametrize("override", ["train.steps", "=3", "train..steps=3", "train.steps.x=1", "train=[1"])
def test_something_that_is_not_an_override_is_refused(override: str):
    assert override in str(refusal(override))


def test_a_key_given_twice_is_refused_instead_of_the_last_one_winning(tmp_path: Path):
    text = (RECIPES / "quickstart.yaml").read_text()
    (tmp_path / "twice.yaml").write_text(text.replace("seed: 0\n", "seed: 0\nseed: 1\n"))
    with pytest.raises(ConfigError, match="given twice"):
        load_recipe(tmp_path / "twice.yaml")


def test_a_missing_section_is_named(tmp_path: Path):
    values = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    del values["pack"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="`pack` is missing"):
        load_recipe(tmp_path / "short.yaml")


def test_an_unknown_recipe_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match="Did you mean `quickstart`"):
        load_recipe("quikstart")
    with pytest.raises(ConfigError, match=r"no recipe file .*mine\.yaml"):
        load_recipe("mine.yaml")


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    waiting = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= sections(annotation)
        else:
            waiting += typing.get_args(annotation)
    return found


def test_every_setting_has_a_one_line_description():
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert "\n" not in field.description
            assert section.__doc__


def test_every_setting_of_the_quickstart_is_known_by_its_dotted_path():
    names = set(setting_names(Recipe))
    assert {"train.steps", "data.sources.<name>.make.train_rows", "where.ray.address"} <= names
    assert all(re.fullmatch(r"[a-z0-9_<>.]+", name) for name in names)


PAPER = [name for name in list_recipes() if name not in ("quickstart", "ablation", "paper_data")]


@pytest.mark.parametrize("name", PAPER)
def test_a_published_models_recipe_states_every_setting_of_its_optimisation(name: str):
    """What the paper leaves open stands in the file, with a note that it is ours, and never in a default."""
    stated = yaml.safe_load((RECIPES / "paper_data.yaml").read_text())["train"]
    stated |= yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("train", {})
    of_the_run = {"seed", "evaluate_every", "held_out_sequences", "score_every", "scored_questions"}
    assert Train.model_fields.keys() - stated.keys() <= of_the_run


@pytest.mark.parametrize("value", ["0", "null", ".inf"])
def test_clipping_can_be_turned_off(value: str):
    assert load_recipe("ca-helium1", [f"train.clip_grad_norm={value}"]).train.clip_grad_norm == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "It is empty."), ("- a\n", "It holds a list."), ("a\n", "It holds a text."), ("7", "value")],
)
def test_a_file_without_settings_is_refused_in_words(text: str, why: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not a mapping") as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert why in caught.value.why


@pytest.mark.parametrize("name", ["recipes", "recipes.yaml"])
def test_a_folder_in_place_of_a_recipe_is_refused_with_the_recipes_in_it(name: str, tmp_path: Path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.yaml").write_text("base: quickstart")
    with pytest.raises(ConfigError, match="is a folder") as caught:
        load_recipe(tmp_path / name)
    assert "mine.yaml" in caught.value.why


def test_nothing_is_suggested_for_a_name_that_is_like_none():
    assert did_you_mean("trian", ["train", "pack"], "no") == "Did you mean `train`?"
    assert did_you_mean("nothing", ["train", "pack"], "no") == "no"


def test_nothing_is_suggested_for_a_choice_that_is_like_none():
    assert "did you mean" not in str(refusal("model.fusion.kind=foo"))
    assert "did you mean `casa`" in str(refusal("model.fusion.kind=cassa"))


def test_the_remedies_of_several_problems_are_told_apart(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("trainn: {}")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "add `data`; add `model`" in caught.value.remedy
