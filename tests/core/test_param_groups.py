"""Training stages: what the paper's Table 10 trains of each model, at which rate, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from casa_core.backbones.published import helium1_2b_text, qwen2_5_vl_3b_text, qwen2_5_vl_3b_vision
from casa_core.config import STAGES, CasaConfig, TrainingStage
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import describe, parameter_groups
from tests.support.core.foreign import WORDS, fused
from tests.support.core.published import picture, seen_logits

FUSIONS: dict[str, dict[str, Any]] = {
    "CA": {},
    "gated CA, own norms": {"gate": "adaptive_sigmoid", "image_norm": "own", "text_norm": "own"},
    "CA in one layer": {"layers": (1,)},
    "CA, image FFNs": {"image_ffn": True},
    "CA, shared projections": {"shared_projections": True},
    "CASA replacing": {"kind": "casa", "placement": "replace", "layers": (1,)},
    "CASA replacing, own image norm": {
        "kind": "casa",
        "placement": "replace",
        "layers": (0, 2),
        "image_norm": "own",
    },
    "insertion": {"kind": "insertion"},
    "Q-Former": {"kind": "qformer", "qformer_queries": 3},
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def small(backbone: str, name: str, blocks: int = 6) -> CasaForConditionalGeneration:
    """With a tower of six blocks, so that the last four are not all of it."""
    model = fused(backbone, **FUSIONS[name])
    vision = model.config.vision_config
    vision.depth = blocks
    config = CasaConfig(
        text_config=model.config.text_config, vision_config=vision, fusion=model.config.fusion
    )
    return CasaForConditionalGeneration(config)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def expected_names(model: CasaForConditionalGeneration, row: str, name: str) -> dict[str, float]:
    """Table 10 in words: parameter name → learning rate."""
    everything, fused_layers = FUSIONS[name], FUSIONS[name].get("layers", (0, 1, 2))
    borrows = everything.get("shared_projections") or everything.get("placement") == "replace"
    rates: dict[str, float] = {}
    for parameter, _ in model.named_parameters():
        if ".fusion." in parameter or parameter.startswith("qformer."):
            rates[parameter] = 1e-4
        elif parameter.startswith(("language_model.", "lm_head.")):
            if row == "helium-image":
                rates[parameter] = 1e-5
            elif borrows:
                places = [
                    f"language_model.layers.{i}.self_attn.{p}." for i in fused_layers for p in PROJECTIONS
                ]
                rates |= {parameter: 1e-5} if parameter.startswith(tuple(places)) else {}
        elif row in ("helium-image", "qwen-image") and parameter.startswith(
            tuple(f"vision_tower.blocks.{i}." for i in (2, 3, 4, 5))
        ):
            rates[parameter] = 1e-5
    return rates


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("row", STAGES)
def test_each_row_of_table_10_trains_what_it_names(row: str, name: str):
    model = small(row.split("-")[0], name)
    expected = expected_names(model, row, name)
    if not expected:
        with pytest.raises(ConfigError, match="trains nothing"):
            parameter_groups(model, STAGES[row])
        return
    groups = parameter_groups(model, STAGES[row])
    assert trained_names(model) == set(expected)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(name_of[id(p)], group["lr"]) for group in groups for p in group["params"]]
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert {group["lr"]: group["kind"] for group in groups} == {
        rate: "new" if rate == 1e-4 else "existing" for rate in expected.values()
    }


def test_the_merger_and_all_before_the_last_blocks_stay_frozen():
    model = small("qwen", "CA")
    parameter_groups(model, STAGES["qwen-image"])
    tower = {name for name in trained_names(model) if name.startswith("vision_tower.")}
    assert {name.split(".")[2] for name in tower} == {"2", "3", "4", "5"}
    assert not any("merger" in name or "patch_embed" in name for name in tower)


def test_only_what_is_trained_changes_in_a_step():
    model = small("qwen", "CA, shared projections")
    groups = parameter_groups(model, STAGES["qwen-image-video"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    logits = seen_logits(model, WORDS, [1, 4], [picture(1), picture(2)])
    logits.square().mean().backward()
    optimizer.step()
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == trained_names(model)
    assert changed == {name for name in before if ".self_attn." in name}, (
        "q, k, v and o of every layer, biases included"
    )


def test_a_later_stage_freezes_what_an_earlier_one_trained():
    model = small("qwen", "CA")
    parameter_groups(model, STAGES["helium-image"])
    parameter_groups(model, STAGES["qwen-livecc"])
    assert trained_names(model) == {name for name, _ in model.named_parameters() if ".fusion." in name}


def test_a_tied_head_is_in_one_group_once():
    model = small("qwen", "CA")
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    groups = parameter_groups(model, STAGES["helium-image"])
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert id(model.lm_head.weight) in grouped


def test_the_fusion_can_be_left_alone():
    model = small("helium", "CA, shared projections")
    with pytest.raises(ConfigError, match="trains nothing") as caught:
        parameter_groups(model, TrainingStage(language_model=False, vision_blocks=0, fusion=False))
    assert "Train the language model" in caught.value.remedy
    parameter_groups(model, TrainingStage(language_model=True, vision_blocks=0, fusion=False))
    assert all(name.startswith(("language_model", "lm_head")) for name in trained_names(model))
    gated = small("helium", "gated CA, own norms")
    parameter_groups(gated, TrainingStage(language_model=True, vision_blocks=0, fusion=False))
    assert not any(".fusion." in name for name in trained_names(gated))


def test_rates_are_the_stages():
    stage = TrainingStage(
        language_model=True, vision_blocks=1, new_learning_rate=3e-4, existing_learning_rate=2e-6
    )
    groups = parameter_groups(small("helium", "CA"), stage)
    assert {group["name"]: group["lr"] for group in groups} == {
        "fusion": 3e-4,
        "language model": 2e-6,
        "vision tower's last blocks": 2e-6,
    }
    with pytest.raises(ConfigError, match="new_learning_rate"):
        TrainingStage(language_model=True, vision_blocks=0, new_learning_rate=0.0)


def test_more_blocks_than_the_tower_has_are_refused():
    with pytest.raises(ConfigError, match="last 7 blocks"):
        parameter_groups(small("qwen", "CA"), TrainingStage(language_model=False, vision_blocks=7))


@pytest.mark.parametrize("name", ["CA", "Q-Former", "insertion"])
def test_a_blind_model_trains_only_what_its_text_can_reach(name: str):
    model = small("helium", name)
    model.config.images_withheld = True
    parameter_groups(model, STAGES["helium-image"])
    assert all(name.startswith(("language_model", "lm_head")) for name in trained_names(model))
    assert not any(".fusion." in name for name in trained_names(model))
    with pytest.raises(ConfigError, match="images withheld"):
        parameter_groups(model, STAGES["qwen-image"])


def test_the_table_tells_each_groups_size_and_leaves_the_model_alone():
    model = small("qwen", "CA")
    before = trained_names(model)
    lines = describe(model, STAGES["qwen-image"]).splitlines()
    assert trained_names(model) == before
    assert lines[0].split() == ["group", "tensors", "parameters", "learning", "rate"]
    cells = {line.split("  ")[0]: line.split()[-3:] for line in lines[1:]}
    fusion = [p for layer in model.fused_layers() for p in layer.fusion.parameters()]
    blocks = [p for block in model.vision_tower.blocks[-4:] for p in block.parameters()]
    sizes = {"fusion": (fusion, "1e-04"), "vision tower's last blocks": (blocks, "1e-05")}
    for group, (parameters, rate) in sizes.items():
        assert cells[group] == [str(len(parameters)), f"{sum(p.numel() for p in parameters):,}", rate]
    frozen, every = lines[-2].split(), lines[-1].split()
    assert int(frozen[1]) == len(list(model.parameters())) - len(fusion) - len(blocks)
    assert every[0] == "all"
    assert every[2] == f"{sum(p.numel() for p in model.parameters()):,}"


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ("helium-image", {"fusion": 352.3, "language model": 2023.9, "vision tower's last blocks": 78.8}),
        ("qwen-image", {"fusion": 339.8, "vision tower's last blocks": 78.8}),
        ("qwen-image-video", {"fusion": 339.8}),
        ("qwen-livecc", {"fusion": 339.8}),
    ],
)
def test_at_full_size_the_groups_have_the_published_sizes(row: str, trained: dict[str, float]):
    """The paper: 352M new parameters for Helium1-2B, and four of the tower's 32 blocks (78.8 M by shape)."""
    text = helium1_2b_text() if row.startswith("helium") else qwen2_5_vl_3b_text()
    with torch.device("meta"):
        model = CasaForConditionalGeneration(
            CasaConfig(text_config=text, vision_config=qwen2_5_vl_3b_vision())
        )
    groups = parameter_groups(model, STAGES[row])
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) / 1e6 for group in groups}
    assert sizes == {name: pytest.approx(millions, abs=0.06) for name, millions in trained.items()}
