"""Checkpoints in other layouts: imported whole and exactly, or refused with what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.errors import CasaError, ConfigError
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.importing import import_checkpoint, inspect_checkpoint
from tests.support.core.foreign import answers, exported, fused

FLAMINGO = {"placement": "before", "gate": "tanh", "image_norm": "own", "text_norm": "own"}
FUSIONS: dict[str, dict[str, Any]] = {
    "CA": {},
    "CASA in some layers": {"kind": "casa", "layers": (0, 2)},
    "gated CA": {"gate": "adaptive_sigmoid"},
    "CA as in Flamingo": FLAMINGO,
    "CA, own image norm": {"image_norm": "own"},
    "CA, shared projections": {"shared_projections": True},
    "CASA replacing": {"kind": "casa", "placement": "replace", "layers": (1,)},
    "insertion": {"kind": "insertion"},
    "Q-Former": {"kind": "qformer", "qformer_queries": 3},
}
Weights = dict[str, torch.Tensor]


def imported(
    folder: Path, model: CasaForConditionalGeneration, **choices: Any
) -> CasaForConditionalGeneration:
    return import_checkpoint(folder, **_choices(model, choices))[0]


def problems(folder: Path, model: CasaForConditionalGeneration, **choices: Any) -> str:
    """Why it is refused, which it must be."""
    given = _choices(model, choices)
    with pytest.raises(CasaError) as caught:
        import_checkpoint(folder, **given)
    assert caught.value.why
    assert caught.value.remedy
    report = inspect_checkpoint(folder, **given)
    assert all(problem in caught.value.why for problem in report.problems[:4])
    return "\n".join(report.problems)


def _choices(model: CasaForConditionalGeneration, choices: dict[str, Any]) -> dict[str, Any]:
    helium = model.config.text_config.model_type == "helium"
    usual = {"config": model.config, "positions": "window", "rope_pairs": "neighbours" if helium else None}
    return usual | choices


def assert_same(ours: CasaForConditionalGeneration, theirs: CasaForConditionalGeneration) -> None:
    assert torch.equal(answers(ours), answers(theirs))
    mine, hers = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == hers.keys()
    assert all(torch.equal(mine[name], hers[name]) for name in mine)


@pytest.mark.parametrize("backbone", ["helium", "qwen"])
@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_comes_back_bit_for_bit(name: str, backbone: str, tmp_path: Path):
    model = fused(backbone, **FUSIONS[name])
    assert_same(imported(exported(tmp_path, model), model), model)


@pytest.mark.parametrize(
    "layout",
    [
        {"text": "language_model.model.", "tower": "image_prefix.visual."},
        {"text": "", "tower": "encoder."},
        {"text": "a.b.", "tower": "a.b.c.visual."},
        {"fusion": "self_attn.{}_casa"},
        {"fusion": "{}_cross"},
        {"fusion": "cross.attention.{}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backbone", ["helium", "qwen"])
def test_prefixes_and_modules_may_have_any_name(layout: dict[str, str], backbone: str, tmp_path: Path):
    model = fused(backbone)
    assert_same(imported(exported(tmp_path, model, **layout), model), model)


@pytest.mark.parametrize(
    "names",
    [("to_q", "to_k", "to_v", "to_out"), ("query", "key", "value", "output"), ("wq", "wk", "wv", "wo")],
)
def test_projections_may_be_called_by_other_words(names: tuple[str, ...], tmp_path: Path):
    model = fused("qwen")
    ours = ("q_proj", "k_proj", "v_proj", "o_proj")

    def rename(weights: Weights) -> Weights:
        return {
            name.replace(f"casa_attn.{old}", f"casa_attn.{new}"): value
            for name, value in weights.items()
            for old, new in [next(((o, n) for o, n in zip(ours, names, strict=True) if o in name), ("", ""))]
        }

    assert_same(imported(exported(tmp_path, model, change=rename), model), model)


@pytest.mark.parametrize("name", ["CA", "CA, shared projections", "CASA replacing", "CA as in Flamingo"])
def test_llamas_order_of_rows_is_undone_where_it_is_declared(name: str, tmp_path: Path):
    model = fused("helium", **FUSIONS[name])
    folder = exported(tmp_path, model, halves=True)
    assert_same(imported(folder, model, rope_pairs="halves"), model)
    wrong = imported(folder, model, rope_pairs="neighbours")
    assert not torch.allclose(answers(wrong), answers(model), atol=0.1)


def test_positions_must_be_given_and_are_the_models(tmp_path: Path):
    model = fused("qwen", positions="global")
    folder = exported(tmp_path, model)
    with pytest.raises(TypeError, match="positions"):
        import_checkpoint(folder, config=model.config)  # pyright: ignore[reportCallIssue]
    assert_same(imported(folder, model, positions="global"), model)
    wrong = imported(folder, model, positions="window")
    assert not torch.allclose(answers(wrong), answers(model), atol=0.01)


def test_heliums_pairs_must_be_given_and_qwens_cannot_be(tmp_path: Path):
    helium, qwen = fused("helium"), fused("qwen")
    with pytest.raises(ConfigError, match="does not say which rows"):
        imported(exported(tmp_path / "h", helium), helium, rope_pairs=None)
    with pytest.raises(ConfigError, match="does not go with"):
        imported(exported(tmp_path / "q", qwen), qwen, rope_pairs="neighbours")


def test_the_report_names_every_tensor_once(tmp_path: Path):
    model = fused("helium")
    extra = {"logit_scale": torch.ones(1), "model.rotary_emb.inv_freq": torch.ones(4)}
    folder = exported(tmp_path, model, change=lambda weights: weights | extra)
    again, report = import_checkpoint(folder, **_choices(model, {"ignore": ["logit_*"]}))
    assert_same(again, model)
    assert {take.target for take in report.taken} == {name for name, _ in model.named_parameters()}
    assert len({take.source for take in report.taken}) == len(report.taken)
    assert report.left_over == ("logit_scale",)
    assert (
        "model.layers.1.casa_attn.k_proj.weight → language_model.layers.1.fusion.k_proj.weight (16, 32)"
        in (report.table().splitlines())
    )
    assert "logit_scale → (left over)" in report.table()


def test_a_tied_head_may_be_stored_beside_the_embedding(tmp_path: Path):
    model = fused("qwen")

    def beside(by: float) -> Callable[[Weights], Weights]:
        return lambda weights: weights | {"out.lm_head.weight": weights["model.embed_tokens.weight"] + by}

    assert_same(imported(exported(tmp_path / "same", model, change=beside(0.0)), model), model)
    folder = exported(tmp_path / "other", model, change=beside(1.0))
    assert "differs from the embedding" in problems(folder, model)


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new): value for name, value in weights.items()}


def also(old: str, new: str) -> Callable[[Weights], Weights]:
    """A second copy of some tensors under another name."""
    return lambda weights: weights | {n.replace(old, new): v.clone() for n, v in weights.items() if old in n}


def reshaped(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.zeros(shape)}


CA = "model.layers.1.casa_attn"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("layers.1.mlp.up_proj"), "language_model lacks 1 of 29 tensors: model.layers.1.mlp.up_proj"),
        (without("embed_tokens"), "language_model lacks 1 of 29"),
        (without("lm_head"), "no lm_head.weight of the shape (60, 32)"),
        (without("visual.blocks.2.norm1"), "vision_tower lacks 1 of 42"),
        (without("visual"), "vision_tower was not found"),
        (without(f"{CA}.v_proj"), "layer 1: casa_attn holds no v_proj"),
        (without(CA), "layer 1: no module besides self-attention holds"),
        (reshaped("model.norm.weight", 31), "model.norm.weight (31,) instead of (32,)"),
        (reshaped(f"{CA}.q_proj.weight", 16, 32), "named like q_proj, which needs (32, 32)"),
        (reshaped(f"{CA}.q_proj.weight", 7, 32), "named like q_proj, which needs (32, 32)"),
        (
            renamed("casa_attn.k_proj", "casa_attn.first"),
            "could be k_proj, v_proj: its name does not say which",
        ),
        (
            renamed("casa_attn.q_proj", "casa_attn.first"),
            "could be o_proj, q_proj: its name does not say which",
        ),
        (renamed("casa_attn.k_proj", "casa_attn.v_other"), "both look like v_proj"),
        (also("casa_attn", "other"), "q, k, v and o are in casa_attn and in other"),
        (also("enc.visual", "old.visual"), "image_prefix.enc.visual., image_prefix.old.visual.: choose one"),
        (also("lm_head", "old.lm_head"), "the head: several: lm_head.weight, old.lm_head.weight"),
        (
            reshaped("model.layers.0.adapter.weight", 32, 32),
            "1 tensors would be left over: model.layers.0.adapter",
        ),
        (reshaped(f"{CA}.q_proj.bias", 32), f"1 tensors would be left over: {CA}.q_proj.bias"),
        (reshaped("logit_scale", 1), "1 tensors would be left over: logit_scale"),
    ],
)
def test_what_is_missing_unclear_or_too_much_is_refused(
    change: Callable[[Weights], Weights], expected: str, tmp_path: Path
):
    model = fused("helium")
    assert expected in problems(exported(tmp_path, model, change=change), model)


def test_a_missing_bias_is_refused(tmp_path: Path):
    model = fused("qwen")
    folder = exported(tmp_path, model, change=without(f"{CA}.k_proj.bias"))
    assert "casa_attn.k_proj.bias is missing; k_proj.bias needs (16,)" in problems(folder, model)


@pytest.mark.parametrize(
    ("stored", "declared"),
    [
        ({}, {"shared_projections": True}),
        ({"shared_projections": True}, {}),
        ({}, {"layers": 2}),
        ({"layers": 2}, {}),
        ({"gate": "tanh"}, {}),
        ({}, {"gate": "adaptive_sigmoid"}),
        ({}, {"image_norm": "own"}),
        ({}, {"kind": "insertion"}),
        ({"kind": "qformer"}, {"kind": "insertion"}),
    ],
    ids=str,
)
def test_another_fusion_than_the_stored_one_is_refused(
    stored: dict[str, Any], declared: dict[str, Any], tmp_path: Path
):
    folder = exported(tmp_path, fused("helium", **stored))
    assert problems(folder, fused("helium", **declared))


def test_two_candidates_are_told_apart_by_saying_where(tmp_path: Path):
    model = fused("helium")

    def spoilt(weights: Weights) -> Weights:
        copies = also("casa_attn", "a")(also("enc.visual", "b")(also("lm_head", "c.lm_head")(weights)))
        return {name: value if name in weights else value + 1 for name, value in copies.items()}

    folder = exported(tmp_path, model, change=spoilt)
    where = {"fusion": "casa_attn", "vision_tower": "image_prefix.enc.visual.", "lm_head": "lm_head.weight"}
    rest = ["model.layers.*.a.*", "image_prefix.b.*", "c.lm_head.*"]
    assert_same(imported(folder, model, where=where, ignore=rest), model)
    assert "left over" in problems(folder, model, where=where)
    assert "no nowhere holds" in problems(folder, model, where=where | {"fusion": "nowhere"}, ignore=rest)
    with pytest.raises(ConfigError, match="no part 'tower'"):
        imported(folder, model, where={"tower": "x"})


def test_norms_that_have_one_shape_are_told_apart_by_name_or_refused(tmp_path: Path):
    model = fused("helium", image_norm="own", text_norm="own")
    swap = {"image_norm": "norm_kv", "text_norm": "norm_q"}

    def other_words(weights: Weights) -> Weights:
        for old, new in swap.items():
            weights = renamed(old, new)(weights)
        return weights

    assert_same(imported(exported(tmp_path / "words", model, change=other_words), model), model)
    numbered = lambda weights: renamed("image_norm", "norm1")(renamed("text_norm", "norm2")(weights))  # noqa: E731
    assert "image_norm" in problems(exported(tmp_path / "numbers", model, change=numbered), model)


def test_weights_are_stored_precision_unless_another_is_asked_for(tmp_path: Path):
    model = fused("helium").to(torch.bfloat16)
    folder = exported(tmp_path, model)
    assert imported(folder, model).dtype == torch.bfloat16
    assert imported(folder, model, dtype=torch.float32).dtype == torch.float32
