"""What each published recipe trains, how fast, and when: Table 10 and B.1, on small models of its layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.batch import PackedSequence, collate
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from pipelines.recipe.load import list_recipes, load_recipe
from pipelines.recipe.model import Recipe
from pipelines.recipe.where import TrainWorkers
from pipelines.train.loader import MicroBatch
from pipelines.train.loop import learning_rate_factor
from pipelines.train.model_config import model_config, training_stage
from tests.support.train.workers import finish, start_group

VOCABULARY = 90
LANGUAGE_MODEL = r"(language_model\.(?!.*\.fusion\.)|lm_head)"
LAST_BLOCKS = r"vision_tower\.blocks\.[4567]\."  # of the small tower's eight
NEW = r"(.*\.fusion\.|qformer\.)"
ATTENTION = r"self_attn\.[qkvo]_proj\."
HELIUM = {NEW: 1e-4, LANGUAGE_MODEL: 1e-5, LAST_BLOCKS: 1e-5}
QWEN_IMAGE = {NEW: 1e-4, LAST_BLOCKS: 1e-5}
TABLE_10 = {
    "ca-helium1": HELIUM,
    "ca-helium1-image-ffn": HELIUM,
    "ca-helium1-shared": HELIUM,
    "casa-helium1-before": HELIUM,
    "casa-helium1-parallel": HELIUM,
    "casa-helium1-replace": HELIUM,
    "helium1-insertion": HELIUM,
    "helium1-qformer32": HELIUM,
    "helium1-qformer64": HELIUM,
    "helium1-qformer128": HELIUM,
    "helium1-qformer64-livecc": {NEW: 1e-4, LANGUAGE_MODEL: 1e-5},
    "casa-qwen-image": QWEN_IMAGE,
    "ca-qwen-image": QWEN_IMAGE,
    "casa-qwen-video": {NEW: 1e-4},
    "casa-qwen-livecc": {NEW: 1e-4},
    # Nothing is new, and the language model is frozen: the borrowed projections, our choice.
    "ca-qwen-shared": {rf"language_model\.layers\.\d\.{ATTENTION}": 1e-5, LAST_BLOCKS: 1e-5},
    "casa-qwen-replace": {rf"language_model\.layers\.[37]\.{ATTENTION}": 1e-5, LAST_BLOCKS: 1e-5},
}
"""Recipe → which tensors train (the first matching pattern counts), and at which rate; others are frozen."""
BUDGETS = {
    "helium1-qformer64-livecc": (3072, 30720, 448, 20_000, [0, 1]),
    "casa-qwen-video": (3072, 46080, 896, 15_000, [3, 1]),
    "casa-qwen-livecc": (3072, 30720, 448, 20_000, [0, 1]),
}
"""Text and image tokens, R_max, steps, image : video."""


def rate_of(name: str, recipe: str) -> float | None:
    return next((rate for pattern, rate in TABLE_10[recipe].items() if re.match(pattern, name)), None)


def small_model(recipe: Recipe) -> CasaForConditionalGeneration:
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(
        model_config(recipe.model, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, scale="small")
    )
    model.initialize_fusion()
    return model.train()


def random_batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(1)
    grids = [(8, 12), (4, 4), (16, 8)]
    ids = torch.randint(2, VOCABULARY, (48,), generator=generator).tolist()
    packed = PackedSequence(
        input_ids=ids,
        loss_mask=[position > 5 for position in range(48)],
        document_starts=[0, 20],
        image_positions=[1, 9, 24],
        image_tokens=[rows * columns // 4 for rows, columns in grids],
        image_grids=grids,
        patches_PE=[torch.randn(r * c, 3 * 2 * 14 * 14, generator=generator) for r, c in grids],
    )
    return MicroBatch(collate([packed]), ())


def take_three_steps(_: int, world_size: int, folder: str) -> None:
    """Real DeepSpeed in a process of its own; writes each recipe's weights before and after."""
    from pipelines.train import zero
    from pipelines.train.step import accumulate_gradients, update

    for name in TABLE_10:
        recipe = load_recipe(name, ["train.warmup_steps=0"])
        spec = recipe.train.model_copy(update={"precision": "fp32"})
        model = small_model(recipe)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        groups = parameter_groups(model, training_stage(spec))
        engine = zero.wrap(model, groups, spec, TrainWorkers(zero_stage=2), world_size)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        rates: dict[str, float] = {}
        for step in range(3):
            zero.set_learning_rates(engine, learning_rate_factor(spec, step))
            accumulate_gradients(engine, [random_batch()], 1)
            update(engine)
        for group in groups:
            rates |= {names[id(parameter)]: group["lr"] for parameter in group["params"]}
        changed = {key for key, value in model.named_parameters() if not torch.equal(before[key], value)}
        torch.save({"changed": changed, "all": set(before), "rates": rates}, Path(folder) / f"{name}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("recipes")
    finish(start_group(1, take_three_steps, str(folder)))
    return {name: torch.load(folder / f"{name}.pt") for name in TABLE_10}


def test_every_recipe_of_a_model_is_held_to_the_table():
    large = {name for name in list_recipes() if load_recipe(name).model.backbone != "tiny"}
    assert large == {"paper_data", *TABLE_10}


@pytest.mark.parametrize("recipe", TABLE_10)
def test_after_three_steps_exactly_the_tensors_of_table_10_have_changed(
    trained: dict[str, dict[str, Any]], recipe: str
):
    every = trained[recipe]["all"]
    expected = {name: rate for name in every if (rate := rate_of(name, recipe)) is not None}
    assert trained[recipe]["rates"] == expected
    assert trained[recipe]["changed"] == expected.keys()
    fusion = load_recipe(recipe).model.fusion
    adds = fusion.kind != "insertion" and not fusion.shared_projections and fusion.placement != "replace"
    assert any(re.match(NEW, name) for name in every) == adds


@pytest.mark.parametrize("name", TABLE_10)
def test_budgets_steps_batch_and_optimizer_are_those_of_the_paper(name: str):
    recipe = load_recipe(name)
    inserts = name.startswith("helium1-")
    steps = 100_000 if "helium" in name else 65_000
    usual = (1024, 10240, 672, steps, [1, 0]) if inserts else (2048, 20480, 896, steps, [1, 0])
    text, image, side, steps, ratio = BUDGETS.get(name, usual)
    assert (recipe.pack.text_tokens, recipe.pack.image_tokens, recipe.pack.max_side) == (text, image, side)
    assert recipe.pack.max_frame_side == 448
    assert (recipe.train.steps, recipe.train.image_video_ratio) == (steps, ratio)
    workers = recipe.where.train
    assert workers.workers == 64
    per_worker = recipe.train.sequences_per_step // 64
    assert per_worker // (workers.sequences_per_forward or per_worker) == 2  # accumulation steps
    assert recipe.train.videos_per_step == recipe.train.sequences_per_step == 128
    assert (recipe.train.adam_betas, recipe.train.weight_decay) == ([0.9, 0.999], 0)  # plain Adam


@pytest.mark.parametrize("name", TABLE_10)
def test_the_rate_rises_over_the_first_thousand_steps_stays_and_falls_over_the_last_tenth(name: str):
    train = load_recipe(name).train
    steps, decay = train.steps, train.steps // 10
    at = lambda step: 1e-4 * learning_rate_factor(train, step)  # noqa: E731
    assert at(0) == pytest.approx(1e-7)
    assert at(499) == pytest.approx(5e-5)
    assert [at(step) for step in (999, 1000, steps // 2, steps - decay)] == pytest.approx([1e-4] * 4)
    assert at(steps - decay // 2) == pytest.approx(5e-5)
    assert at(steps - 1) == pytest.approx(1e-4 / decay)
