"""What transformers' users expect around the forward: saving and loading, auto classes, sizes, attention by
name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

import casa_core.auto  # noqa: F401 (registers the model with transformers)
from casa_core import pretrained
from casa_core.config import CasaConfig
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import BACKBONES, FUSIONS, TOWERS, BackboneKind, TowerKind, small_casa
from tests.support.core.hf_rows import padded, three_rows


def loaded(folder: Path, **options: Any) -> tuple[CasaForConditionalGeneration, dict[str, Any]]:
    """A model as transformers loads it, and what it has to say about the weights."""
    model, report = cast(
        Any,
        CasaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **options),
    )
    return model, report


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_model_comes_back_as_it_was_saved(
    fusion: str, backbone: BackboneKind, tower: TowerKind, tmp_path: Path
):
    model = small_casa(backbone, tower=tower, **FUSIONS[fusion])
    model.save_pretrained(tmp_path)
    again, report = loaded(tmp_path)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert not again.training
    assert again.config.fusion_settings == model.config.fusion_settings
    assert_same_weights(model, again)
    # As mapped from the file they lie unaligned, and kernels round otherwise.
    for weight in again.parameters():
        weight.data = weight.data.clone()
    inputs = padded(three_rows(tower))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_stored_unless_it_is_the_embedding(tied: bool, tmp_path: Path):
    model = small_casa(tied=tied, **FUSIONS["casa"])
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    again, report = loaded(tmp_path)
    assert not report["missing_keys"]
    assert (again.lm_head.weight is again.language_model.embed_tokens.weight) is tied
    assert_same_weights(model, again)


def test_weights_are_stored_in_shards_and_read_in_the_precision_asked_for(tmp_path: Path):
    model = small_casa("qwen", tower="qwen", **FUSIONS["qformer"])
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_weights(model, loaded(tmp_path, device_map="cpu")[0])
    half, report = loaded(tmp_path, dtype=torch.bfloat16)
    assert not report["missing_keys"]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert_same_weights(model.bfloat16(), half)
    half.save_pretrained(tmp_path / "half")
    assert loaded(tmp_path / "half")[0].dtype == torch.bfloat16  # as stored
    assert loaded(tmp_path / "half", dtype="float32")[0].dtype == torch.float32


def test_transformers_auto_classes_know_the_model(tmp_path: Path):
    model = small_casa(**FUSIONS["ca-gated"])
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CasaConfig)
    for auto in (AutoModel, AutoModelForImageTextToText):
        again = cast(Any, auto.from_pretrained(tmp_path))
        assert type(again) is CasaForConditionalGeneration
        assert_same_weights(model, again)
        assert type(auto.from_config(model.config)) is CasaForConditionalGeneration


@pytest.mark.parametrize("fusion", ["ca-gated", "ca-tanh", "casa-own-norms", "qformer"])
def test_a_fusion_that_a_checkpoint_lacks_is_reported_and_started_afresh(fusion: str, tmp_path: Path):
    plain = small_casa(**FUSIONS["insertion"])
    plain.save_pretrained(tmp_path)
    config = small_casa(**FUSIONS[fusion]).config
    model, report = loaded(tmp_path, config=config)
    added = {
        name for name, _ in model.named_parameters() if ".fusion." in name or name.startswith("qformer.")
    }
    assert added
    assert set(report["missing_keys"]) == added
    for name, parameter in model.named_parameters():
        if name not in added:
            assert torch.equal(parameter, plain.get_parameter(name)), name
        elif "norm" in name and name.endswith("weight"):
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias") or "gate" in name:
            assert not parameter.any(), name
        else:
            spread = parameter.std().item()
            assert spread == pytest.approx(0.2, rel=0.25), name  # the configuration's initializer_range


def test_gates_that_were_stored_survive_a_load_that_must_start_something_else(tmp_path: Path):
    model = small_casa(**FUSIONS["ca-gated"])
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        del stored[f"language_model.layers.{layer}.fusion.q_proj.weight"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, report = loaded(tmp_path)
    assert len(report["missing_keys"]) == 3
    for layer, other in zip(model.fused_layers(), again.fused_layers(), strict=True):
        assert torch.equal(layer.fusion.gate_proj.weight, other.fusion.gate_proj.weight)
        assert torch.equal(layer.fusion.gate_proj.bias, other.fusion.gate_proj.bias)


def test_weights_of_a_fusion_that_the_model_lacks_are_reported(tmp_path: Path):
    small_casa(**FUSIONS["ca"]).save_pretrained(tmp_path)
    _, report = loaded(tmp_path, config=small_casa(**FUSIONS["insertion"]).config)
    assert len(report["unexpected_keys"]) == 12
    assert all(".fusion." in name for name in report["unexpected_keys"])


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_can_be_resized(tied: bool, tmp_path: Path):
    model = small_casa(tied=tied)
    old = model(**padded(three_rows())).logits
    model.resize_token_embeddings(57)
    new = model(**padded(three_rows())).logits
    assert new.shape[-1] == 57
    assert torch.equal(new[..., :50], old)
    assert model.config.text_config.vocab_size == 57
    model.save_pretrained(tmp_path)
    again, report = loaded(tmp_path)
    assert not report["missing_keys"]
    assert_same_weights(model, again)


def test_it_tells_its_size_and_that_it_generates():
    model = small_casa(tied=True)
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert model.can_generate()
    assert model.get_input_embeddings() is model.language_model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head


def test_the_configuration_file_is_readable_without_this_package(tmp_path: Path):
    small_casa("qwen", tower="qwen", **FUSIONS["casa-replace"]).config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "casa"
    assert stored["text_config"]["model_type"] == "qwen2_5_vl_text"
    assert stored["vision_config"]["model_type"] == "qwen2_5_vl_vision"
    assert stored["fusion"]["placement"] == "replace"
    assert "attn" not in json.dumps(stored)


NAMES = {"eager": "reference", "sdpa": "auto"}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_attention_is_chosen_by_transformers_names(backbone: BackboneKind, tower: TowerKind, tmp_path: Path):
    model = small_casa(backbone, tower=tower, **FUSIONS["casa"])
    inputs, expected = padded(three_rows(tower)), model(**padded(three_rows(tower))).logits
    model.save_pretrained(tmp_path)
    assert loaded(tmp_path)[0].attention_backend == "auto"
    for name, backend in NAMES.items():
        at_load = loaded(tmp_path, attn_implementation=name)[0]
        later = loaded(tmp_path)[0]
        later.set_attn_implementation(name)
        for chosen in (at_load, later):
            assert chosen.attention_backend == backend
            assert chosen.config._attn_implementation == name
            parts = (chosen.config.text_config, chosen.config.vision_config)
            assert [part._attn_implementation for part in parts] == ["casa_text", "sdpa"]
            torch.testing.assert_close(chosen(**inputs).logits, expected, rtol=0, atol=2e-5)
        made = cast(Any, AutoModel.from_config(model.config, attn_implementation=name))
        assert made.attention_backend == backend


def test_attention_that_is_not_there_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    model = small_casa()
    model.save_pretrained(tmp_path)
    for name, words in (
        ("flash_attention_2", "needs the package flash-attn"),
        ("flex_attention", "'flex_attention'` is not available"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.set_attn_implementation(name)
        with pytest.raises(ConfigError, match=words):
            loaded(tmp_path, attn_implementation=name)
        assert model.attention_backend == "auto"
    with pytest.raises(ConfigError, match="text_config alone"):
        model.set_attn_implementation({"text_config": "eager"})
    model.set_attn_implementation({"": "eager"})
    assert model.attention_backend == "reference"


def test_flash_attention_is_the_flash_backend_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: name == "flash_attn" or None)
    small_casa("qwen", tower="qwen").save_pretrained(tmp_path)
    model = loaded(tmp_path, attn_implementation="flash_attention_2", dtype=torch.bfloat16)[0]
    assert model.attention_backend == "flash"
    model.set_attn_implementation("sdpa")
    assert model(**padded(three_rows("qwen"))).logits.isfinite().all()


def test_attention_changed_behind_the_models_back_does_not_go_unnoticed():
    model = small_casa()
    model.config._attn_implementation = "eager"  # transformers writes it into the parts' configurations too
    with pytest.raises(ConfigError, match="The language model's attention was set to 'eager'"):
        model(**padded(three_rows()))
    model.set_attn_implementation("eager")
    assert model(**padded(three_rows())).logits.isfinite().all()
