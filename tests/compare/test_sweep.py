"""Sweeps: what members share, what is their own, and what the comparison says of them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from casa_core.errors import ConfigError, StoreError
from pipelines.compare import text as words
from pipelines.compare.comparison import Comparison, compare
from pipelines.compare.members import Trained, read_member
from pipelines.compare.plot import draw
from pipelines.compare.run import page
from pipelines.compare.statistics import T_95, paired_difference, t_interval
from pipelines.dag.plan import StageSpec
from pipelines.recipe.load import load_recipe
from pipelines.recipe.sweep_members import combinations, load_sweep
from pipelines.recipe.sweep_stages import build_sweep

VARIANTS = [
    "ca",
    "ca-gated",
    "ca-shared",
    "casa-parallel",
    "casa-before",
    "casa-replace",
    "insertion",
    "qformer",
]


def stages(*overrides: str) -> dict[str, StageSpec]:
    return {stage.name: stage for stage in build_sweep(*load_sweep("ablation", overrides))}


def test_the_ablation_trains_eight_fusions_with_three_seeds_each_on_one_pack():
    found = stages()
    kinds = Counter(stage.kind for stage in found.values())
    assert kinds == {"corpus": 1, "clean": 1, "pack": 1, "train": 24, "evaluate": 24, "compare": 1}
    trained = [stage for stage in found.values() if stage.kind == "train"]
    assert {stage.inputs["pack"] for stage in trained} == {"pack"}
    assert list(dict.fromkeys(stage.name[6:-2] for stage in trained)) == VARIANTS
    assert [stage.settings["seed"] for stage in trained] == [0, 1, 2] * 8
    fusions = {json.dumps(stage.settings["model"]["fusion"], sort_keys=True) for stage in trained}
    assert len(fusions) == 8
    same = {
        json.dumps({**stage.settings, "seed": 0, "model": stage.settings["model"]["backbone"]})
        for stage in trained
    }
    assert len(same) == 1, "variants differ in their fusion, and in nothing else"


def test_each_variant_is_the_fusion_its_name_says():
    fusion = {member.variant: member.recipe.model.fusion for member in load_sweep("ablation")[1]}
    assert {(f.kind, f.placement) for name, f in fusion.items() if name.startswith("ca-")} == {
        ("cross_attention", "parallel")
    }
    assert fusion["ca-gated"].gate == "adaptive_sigmoid"
    assert fusion["ca-shared"].shared_projections
    for name, placement in (("parallel", "parallel"), ("before", "before"), ("replace", "replace")):
        assert (fusion[f"casa-{name}"].kind, fusion[f"casa-{name}"].placement) == ("casa", placement)
    assert fusion["insertion"].kind == "insertion"
    assert fusion["qformer"].qformer_queries == 8


def test_a_variant_that_changes_the_data_has_its_own_pack_and_shares_what_comes_before():
    variants = (
        "sweep.variants={a: {}, b: {pack: {text_tokens: 256}}, c: {train: {steps: 80, decay_steps: 0}}}"
    )
    found = stages(variants, "sweep.seeds=[4]")
    assert set(found) == {
        *("corpus-reading", "clean-reading", "pack", "pack-b-4", "compare"),
        *(f"{kind}-{name}-4" for kind in ("train", "evaluate") for name in "abc"),
    }
    assert found["train-b-4"].inputs["pack"] == "pack-b-4"
    assert found["train-c-4"].inputs["pack"] == "pack"
    assert found["train-c-4"].settings["train"]["steps"] == 80


def test_values_given_on_the_command_line_are_variants_in_all_combinations():
    over = ["train.learning_rate=[1e-3, 3e-3]", "evaluate.batch_size=[8, 16]"]
    found = {stage.name: stage for stage in build_sweep(*load_sweep("quickstart", ["sweep.seeds=[5]"], over))}
    trained = {name: stage for name, stage in found.items() if stage.kind == "train"}
    # The batch of evaluation decides no training.
    assert {stage.settings["train"]["learning_rate"] for stage in trained.values()} == {1e-3, 3e-3}
    assert len(trained) == 4, "each with its blind twin"
    evaluated = {name: stage for name, stage in found.items() if stage.kind == "evaluate"}
    assert set(evaluated) == {
        f"evaluate-learning-rate-{rate}-batch-size-{size}-5" for rate in ("1e-3", "3e-3") for size in (8, 16)
    }
    assert {(e.settings["evaluate"]["batch_size"], e.inputs["train"]) for e in evaluated.values()} == {
        (size, f"train-learning-rate-{rate}-batch-size-8-5") for rate in ("1e-3", "3e-3") for size in (8, 16)
    }


def test_values_that_are_lists_or_long_or_alike_have_names_too():
    assert list(combinations(["train.image_video_ratio=[[1, 0], [1, 1]]"])) == [
        "image-video-ratio-1", "image-video-ratio-2",
    ]  # fmt: skip
    alike = combinations(["model.template=[a_b, a-b, A B]", f"x.y=[{'q' * 60}]"])
    assert len(alike) == 3
    assert all(len(name) <= 40 for name in alike)
    assert list(alike.values())[2] == {"model": {"template": "A B"}, "x": {"y": "q" * 60}}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["train.steps=200"], "names no values"),
        (["train.steps"], "names no values"),
        (["train.steps=[200"], "as YAML"),
        (["train.learning_rate=[1e-3, 3e-3, 0.001]"], "has 0.001 twice"),
        (["train.steps=[200]"], "leaves nothing to compare"),
        (["train.seed=[0, 1]"], r"(?s)sweeps seeds.*--set sweep\.seeds"),
        (["where.store=[a, b]"], "changes where"),
        (["train.step=[1, 2]"], r"variant step-1 of quickstart"),
    ],
)
def test_values_that_cannot_be_swept_are_refused(over: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_sweep("quickstart", (), over)


def test_a_member_is_the_same_work_as_the_recipe_that_says_so_itself():
    from pipelines.recipe.stages import build_stages

    member = stages()["train-casa-before-2"]
    settings = ["model.fusion.kind=casa", "model.fusion.placement=before", "train.seed=2"]
    alone = next(stage for stage in build_stages(load_recipe("ablation", settings)) if stage.name == "train")
    assert member.settings == alone.settings
    assert member.inputs == alone.inputs
    assert "seed" not in member.settings["train"], "one seed, in one place"


def test_a_new_seed_changes_no_other_member():
    before, after = stages(), stages("sweep.seeds=[0, 1, 2, 3]")
    assert {name for name in after if name not in before} == {
        f"{kind}-{variant}-3" for kind in ("train", "evaluate") for variant in VARIANTS
    }
    assert all(after[name] == stage for name, stage in before.items() if stage.kind != "compare")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=null"], r"(?s)nothing to sweep.*add sweep\.variants"),
        (["sweep.seeds=[1, 1]"], "names one twice"),
        (["sweep.variants={a: {}}"], "variants"),
        (["sweep.variants={a: {}, b: {where: {store: x}}}"], "variant b changes where"),
        (["sweep.variants={a: {}, B c: {}}"], "variants"),
        (
            ["sweep.variants={a: {}, b: {model: {fusion: {kind: cassa}}}}"],
            r"(?s)variant b of ablation.*cassa",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_sweep("ablation", overrides)


# Statistics


def test_the_quantiles_are_those_of_students_distribution():
    """By integrating its density."""
    for degrees, quantile in enumerate(T_95, start=1):
        constant = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
        x = np.linspace(0, quantile, 200_001)
        inside = 2 * constant * np.trapezoid((1 + x**2 / degrees) ** (-(degrees + 1) / 2), x)
        assert inside == pytest.approx(0.95, abs=5e-5), f"{degrees} degrees; three decimals"


def test_an_interval_covers_the_true_mean_nineteen_times_in_twenty():
    rng = random.Random(0)
    covered = 0
    for _ in range(4000):
        interval = t_interval([rng.gauss(0.7, 0.05) for _ in range(3)])
        covered += interval.low <= 0.7 <= interval.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_an_interval_is_numpys_standard_error_times_the_quantile():
    values = [0.91, 0.88, 0.95, 0.90]
    interval = t_interval(values)
    half = 3.182 * np.std(values, ddof=1) / 2
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.91, 0.91 - half, 0.91 + half))


def test_one_value_has_no_interval_and_none_is_no_mean():
    assert (t_interval([0.5]).low, t_interval([0.5]).high) == (-math.inf, math.inf)
    assert not t_interval([0.5]).excludes_zero
    with pytest.raises(ValueError, match="at least one value"):
        t_interval([])


def test_a_seeds_luck_cancels_in_a_paired_difference():
    luck = [0.10, -0.20, 0.05]
    base = [0.7 + one for one in luck]
    difference = paired_difference([value + 0.02 for value in base], base)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.02, 0.02, 0.02))
    assert difference.excludes_zero
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])


# The comparison


def trained(variant: str, seed: int, score: float) -> Trained:
    return Trained(
        variant=variant,
        seed=seed,
        scores={"mean of types": score, "read": score / 2},
        chance={"mean of types": 0.1},
        questions=90,
        parameters=500_000,
        loss=0.3,
        seconds=75.0,
        operations_per_token=1.5e6,
    )


SCORES = {"ca": (0.80, 0.82, 0.84), "better": (0.90, 0.92, 0.94), "alike": (0.70, 0.95, 0.80)}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        "toy", [trained(v, s, score) for v, all_ in SCORES.items() for s, score in enumerate(all_)]
    )


def test_only_a_difference_larger_than_seeds_make_is_told(comparison: Comparison):
    told, others = words.conclusion(comparison).split(". ")
    assert told == "By mean of types, beside ca, in percentage points: better +10.0"
    assert others == "The others are within what seeds do."
    text = words.markdown(comparison)
    assert "| better | 92.0 % [87.0 to 97.0] | 46.0 % [43.5 to 48.5] | **+10.0 [+10.0 to +10.0]** |" in text
    assert "| alike | 81.7 % [50.4 to 100.0] |" in text
    assert "Guessing gives mean of types 10.0 %" in text
    assert "3 variants, 3 seeds each (0, 1, 2), 90 held-out questions" in text


def test_one_seed_gives_no_interval_and_no_conclusion():
    found = compare("toy", [trained("ca", 0, 0.8), trained("other", 0, 0.9)])
    assert words.conclusion(found) == "By mean of types, no variant differs from ca by more than seeds do."
    assert "| other | 90.0 % | 45.0 % | +10.0 |" in words.markdown(found)


def test_the_plot_has_a_dot_a_seed_and_a_diamond_a_mean_at_their_places(comparison: Comparison):
    root = ElementTree.fromstring(draw(comparison))
    name = "{http://www.w3.org/2000/svg}"
    dots = list(root.iter(f"{name}circle"))
    assert len(dots) == 2 * 9
    panel = [float(dot.get("cx", 0)) for dot in dots[:9]]
    expected = [150 + 190 * score for scores in SCORES.values() for score in scores]
    assert panel == pytest.approx(expected, abs=0.01)
    assert len(list(root.iter(f"{name}path"))) == 6
    labels = [mark.text for mark in root.iter(f"{name}text")]
    assert labels[:3] == ["ca", "better", "alike"]


def test_the_page_is_whole_and_escapes_what_it_shows():
    found = compare("a<b", [trained(v, s, 0.5) for v in ("x", "y") for s in (0, 1)])
    html = page(found)
    assert html.startswith("<!doctype html>")
    assert "a&lt;b" in html
    assert "a<b" not in html
    assert html.count("<tr>") == 3


def test_a_member_is_read_from_its_artifacts_and_a_missing_file_is_named(tmp_path: Path):
    steps = [
        {"step": n, "loss": 1.0 / n, "seconds": 2.0, "text_tokens": 100, "tflops": 0.5, "workers": 2}
        for n in (1, 2)
    ]
    model: dict[str, Any] = {"parameters": 7}
    cells = {"read": {"value": 0.25, "count": 9}, "all": {"value": 0.5, "count": 18}}
    board = {
        "columns": ["read", "all"],
        "headline": "all",
        "lines": [{"name": "model", "cells": cells}, {"name": "chance", "cells": {"all": {"value": 0.1}}}],
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(model))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    with pytest.raises(StoreError, match=r"(?s)metrics\.json` is missing\..*Variant ca with seed 1"):
        read_member("ca", 1, tmp_path, tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"reading": board}))
    found = asdict(read_member("ca", 1, tmp_path, tmp_path))
    assert found == {
        "variant": "ca",
        "seed": 1,
        "scores": {"all": 0.5, "read": 0.25},
        "chance": {"all": 0.1},
        "questions": 18,
        "parameters": 7,
        "loss": 0.75,
        "seconds": 4.0,
        "operations_per_token": 2 * 0.5e12 * 2 * 2 / 200,
    }
