"""The train stage's settings: the recipe's sections, refused where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from pipelines.recipe.load import load_recipe
from pipelines.recipe.stages import build_stages
from pipelines.train.settings import read_train_settings


@pytest.mark.parametrize("images", [True, False])
def test_a_recipes_sections_come_back_from_the_settings_that_are_hashed(images: bool):
    recipe = load_recipe("quickstart", ["train.seed=5", "train.spike_nats=2.5"])
    stage = next(s for s in build_stages(recipe) if s.name == ("train" if images else "train-blind"))
    settings = read_train_settings({**stage.settings, **stage.location})
    assert settings.train == recipe.train.model_copy(update={"seed": None})
    assert settings.model.fusion == recipe.model.fusion
    assert (settings.model.backbone, settings.model.weights) == ("tiny", None)
    assert (settings.seed, settings.images) == (5, images)


def test_weights_in_a_local_folder_are_named_by_its_path(tmp_path: Path):
    (tmp_path / "model.safetensors").write_text("weights")
    recipe = load_recipe("quickstart", [f"model.weights.checkpoint={tmp_path}"])
    stage = next(s for s in build_stages(recipe) if s.name == "train")
    settings = read_train_settings({**stage.settings, **stage.location})
    assert settings.model.weights == recipe.model.weights


def test_published_weights_keep_their_names():
    recipe = load_recipe("casa-helium1-before")
    weights = recipe.model.weights
    assert weights is not None
    values = {
        "model": recipe.model.model_dump(mode="json", include={"backbone", "fusion"}),
        "weights": weights.model_dump(mode="json", exclude_none=True),
        "train": recipe.train.model_dump(mode="json", exclude={"seed"}),
        "seed": 0,
        "images": True,
        "evaluate": None,
    }
    assert read_train_settings(values).model.weights == weights
    del values["seed"]
    with pytest.raises(ConfigError, match=r"(?s)not TrainSettings.*seed: Field required"):
        read_train_settings(values)
