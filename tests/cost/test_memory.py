"""The memory estimate against bytes counted: state on real engines, activations on real forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from pipelines.cost.activations import TOLERANCE, ActivationModel, count_kept
from pipelines.cost.memory import count_parameters, state_memory
from pipelines.cost.synthetic import SequenceShape, random_batch
from pipelines.recipe.load import load_recipe
from pipelines.recipe.where import TrainWorkers
from pipelines.train import zero
from pipelines.train.model_config import model_config, training_stage
from pipelines.train.step import accumulate_gradients
from tests.support.train.state import engine_state
from tests.support.train.workers import finish, start_group

pytestmark = pytest.mark.slow
SHAPE = SequenceShape(text_tokens=48, images=2, side=4, patch_values=1176, documents=2)
RECIPES = ("casa-qwen-image", "casa-helium1-before")
STATES = [
    *[(workers, stage, "fp32") for workers in (1, 2) for stage in (0, 1, 2, 3)],
    *[(workers, stage, "bf16") for workers in (1, 2) for stage in (1, 2, 3)],
]
ACTIVATIONS = [
    "casa-qwen-image",
    "casa-qwen-video",
    "ca-qwen-shared",
    "casa-helium1-before",
    "casa-helium1-replace",
    "ca-helium1",
    "ca-helium1-image-ffn",
    "helium1-insertion",
    "helium1-qformer32",
]


def small_config(name: str) -> Any:
    return model_config(
        load_recipe(name).model, vocab_size=300, pad_token_id=0, eos_token_id=1, scale="small"
    )


def count_states(rank: int, workers: int, report: str) -> None:
    found = {}
    for name in RECIPES:
        for _, stage, precision in (state for state in STATES if state[0] == workers):
            torch.manual_seed(0)
            model = CasaForConditionalGeneration(small_config(name)).train()
            train = load_recipe(name).train.model_copy(update={"precision": precision})
            groups = parameter_groups(model, training_stage(train))
            engine = zero.wrap(model, groups, train, TrainWorkers(zero_stage=stage), workers)
            generator = torch.Generator().manual_seed(rank)
            for step in range(2):
                accumulate_gradients(engine, [random_batch(SHAPE, 1, 300, generator)], workers)
                if step == 0:
                    engine.step()
            found[f"{name} {stage} {precision}"] = dict(engine_state(engine))
    if rank == 0:
        Path(report).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("states")
    for workers in (1, 2):
        finish(start_group(workers, count_states, str(folder / f"{workers}.json")))
    return {workers: json.loads((folder / f"{workers}.json").read_text()) for workers in (1, 2)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("workers", "stage", "precision"), STATES)
def test_parameters_gradients_and_optimizer_are_within_15_percent_of_what_is_counted(
    states: dict[int, dict[str, dict[str, int]]], name: str, workers: int, stage: int, precision: str
):
    counts = count_parameters(small_config(name), training_stage(load_recipe(name).train))
    estimate = state_memory(counts, zero_stage=stage, workers=workers, precision=precision)
    counted = states[workers][f"{name} {stage} {precision}"]
    for part in ("parameters", "gradients", "optimizer"):
        assert getattr(estimate, part) == pytest.approx(counted[part], rel=0.15), part


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_within_15_percent_of_what_a_larger_model_keeps(
    name: str, precision: str, checkpointing: bool
):
    recipe, config = load_recipe(name), small_config(name)
    stage = training_stage(recipe.train)
    estimate = ActivationModel(config, stage, precision, checkpointing)
    assert estimate.error < TOLERANCE  # of the small models themselves
    larger = SequenceShape(text_tokens=640, images=5, side=16, patch_values=1176, documents=5)
    counted = count_kept(config, stage, larger, precision, checkpointing)
    print(f"{name} {precision} {checkpointing}: {estimate(config, larger) / counted:.3f}")
    assert estimate(config, larger) == pytest.approx(counted, rel=0.15)


def test_activations_of_a_small_fusion_are_what_is_counted():
    recipe, config = load_recipe("helium1-insertion"), small_config("helium1-insertion")
    stage = training_stage(recipe.train)
    estimate = ActivationModel(config, stage, "fp32", checkpointing=True)
    larger = SequenceShape(text_tokens=640, images=5, side=16, patch_values=1176, documents=5)
    counted = count_kept(config, stage, larger, "fp32", checkpointing=True)
    assert estimate(config, larger) == pytest.approx(counted, rel=0.15)
