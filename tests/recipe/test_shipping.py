"""A recipe on its way to another machine: a file, whatever it is laid over, and those it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from pipelines.recipe import load_recipe
from pipelines.recipe.load import list_recipes
from pipelines.recipe.shipping import RECIPE, recipe_files

REMOTE = ("where.ray.address=http://head:8265", "where.store=s3://bucket/runs")


def arrived(files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe as it is read where it arrives."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    return load_recipe(RECIPE)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_arrives_as_it_left(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    overrides = (*REMOTE, "train.seed=77", "train.learning_rate=1e-5")
    paths = {key: source.path or "://" for key, source in load_recipe(name).data.sources.items()}
    overrides += tuple(f"data.sources.{key}.path=/{path}" for key, path in paths.items() if "://" not in path)
    left = load_recipe(name, overrides)
    assert arrived(recipe_files(left), tmp_path / "there", monkeypatch) == left


def test_a_users_recipe_takes_its_base_and_the_recipe_it_starts_from_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "first.yaml").write_text("base: quickstart\nname: first\ntrain: {seed: 7}\n")
    (tmp_path / "mine.yaml").write_text(
        "base: quickstart\nname: mine\nmodel: {weights: {recipe: first.yaml}}\nwhere: {store: runs}\n"
    )
    monkeypatch.chdir(tmp_path)
    left = load_recipe("mine.yaml")
    files = recipe_files(left)
    there = arrived(files, tmp_path / "there", monkeypatch)
    assert there.where.store == str(tmp_path / "runs")
    assert there.model.weights is not None
    assert load_recipe(str(there.model.weights.recipe)).train.seed == 7


@pytest.mark.parametrize(
    "setting", ["where.store", "where.data_store", "where.train.checkpoints", "data.sources.vqa.path"]
)
def test_a_relative_path_is_refused_where_another_machine_would_read_it(setting: str):
    made = ["data.sources.vqa.make=null"] if "vqa" in setting else []
    recipe = load_recipe("quickstart", (*REMOTE, *made, f"{setting}=here"))
    with pytest.raises(ConfigError) as raised:
        recipe_files(recipe)
    assert raised.value.what == f"{setting} = here is a folder of this machine."
    assert "s3://" in raised.value.remedy
