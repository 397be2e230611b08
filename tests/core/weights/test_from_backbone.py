"""Fused models from published backbones: the weights are theirs, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
)

from casa_core.errors import CasaError, ConfigError, StoreError
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.files import WeightFiles
from casa_core.weights.from_backbone import from_backbone
from tests.support.core.published import (
    PLACEHOLDER,
    PROMPT,
    helium,
    llama,
    picture,
    published,
    published_as_released,
    qwen,
    rewrite_config,
    seen_logits,
    stored,
    text_logits,
    with_weights,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each layout."""
    root = tmp_path_factory.mktemp("published")
    return {
        "helium": published(root / "helium", helium()),
        "tied helium": published(root / "tied", helium(tied=True), shards=1),
        "llama": published(root / "llama", llama()),
        "qwen, new names": published(root / "new", qwen()),
        "qwen, old names": published_as_released(root / "old", qwen()),
        "untied qwen": published_as_released(root / "untied", qwen(tied=False)),
    }


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Any:
    """Copies that a test may spoil."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def loaded(folder: Path) -> PreTrainedModel:
    """transformers' own model of that folder: it vouches for the layout, too."""
    is_qwen = json.loads((folder / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    model = (Qwen2_5_VLForConditionalGeneration if is_qwen else AutoModelForCausalLM).from_pretrained(folder)
    return model.eval()


def tower_for(name: str, folders: dict[str, Path]) -> Path | None:
    return None if "qwen" in name else folders["qwen, old names"]


@pytest.mark.parametrize(
    "name", ["helium", "tied helium", "llama", "qwen, new names", "qwen, old names", "untied qwen"]
)
def test_its_text_is_the_backbones_own(name: str, folders: dict[str, Path]):
    model, _ = from_backbone(folders[name], vision=tower_for(name, folders))
    with torch.inference_mode():
        expected = loaded(folders[name])(torch.tensor([PROMPT])).logits[0]
    # Llama's code multiplies in another order than Helium's; all else is the same arithmetic.
    torch.testing.assert_close(text_logits(model, PROMPT), expected, rtol=1e-5, atol=1e-5)
    tied = name in ("tied helium", "qwen, new names", "qwen, old names")
    assert (model.lm_head.weight is model.language_model.embed_tokens.weight) == tied


@pytest.mark.parametrize("name", ["qwen, new names", "qwen, old names"])
def test_with_insertion_its_pictures_are_qwens_own(name: str, folders: dict[str, Path]):
    model, report = from_backbone(folders[name], fusion={"kind": "insertion"})
    assert report.started == ()
    assert report.left_over == ()
    ids = [*PROMPT[:3], *[PLACEHOLDER] * 4, *PROMPT[3:]]
    is_image = torch.tensor([ids]) == PLACEHOLDER
    with torch.inference_mode():
        expected = loaded(folders[name])(
            input_ids=torch.tensor([ids]),
            pixel_values=picture(),
            image_grid_thw=torch.tensor([(1, 4, 4)]),
            mm_token_type_ids=is_image.int(),
        ).logits
    ours = seen_logits(model, PROMPT, [3], [picture()])
    torch.testing.assert_close(ours, expected[~is_image], rtol=1e-4, atol=1e-5)


def test_the_fusion_may_be_given_as_a_mapping(folders: dict[str, Path]):
    model, report = from_backbone(
        folders["tied helium"], vision=folders["qwen, old names"], fusion={"kind": "casa"}
    )
    assert model.config.fusion_settings.kind == "casa"
    assert report.taken


def test_helium_gets_qwens_tower_and_nothing_else_of_it(folders: dict[str, Path]):
    model, report = from_backbone(folders["llama"], vision=folders["qwen, old names"])
    theirs = loaded(folders["qwen, old names"]).model.visual.state_dict()
    ours = model.vision_tower.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {take.files.label for take in report.taken} == {
        str(folders["llama"]),
        str(folders["qwen, old names"]),
    }
    assert report.left_over
    assert all(name.startswith("model.") for name in report.left_over)


def test_new_layers_start_from_self_attention(folders: dict[str, Path]):
    model, report = from_backbone(folders["qwen, old names"], fusion={"image_norm": "own"})
    for layer in model.fused_layers():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            ours, theirs = getattr(layer.fusion, name), getattr(layer.self_attn, name)
            assert torch.equal(ours.weight, theirs.weight)
            assert ours.weight.data_ptr() != theirs.weight.data_ptr()
            assert (ours.bias is None) == (theirs.bias is None)
            assert ours.bias is None or torch.equal(ours.bias, theirs.bias)
        assert torch.equal(layer.fusion.image_norm.weight, layer.input_layernorm.weight)
    assert set(report.started) == {name for name, _ in model.named_parameters() if ".fusion." in name}


def test_a_zeroed_output_leaves_the_backbone_as_it_is_with_pictures_in_sight(folders: dict[str, Path]):
    seen = lambda model: seen_logits(model, PROMPT, [0, 4], [picture(0), picture(1)])  # noqa: E731
    zeroed, _ = from_backbone(folders["qwen, old names"], fusion=FusionConfig(init="zero_output"))
    assert torch.equal(seen(zeroed), text_logits(zeroed, PROMPT))
    copied, _ = from_backbone(folders["qwen, old names"])
    assert not torch.allclose(seen(copied), text_logits(copied, PROMPT), atol=0.1)


def test_a_q_former_starts_at_random_and_nothing_is_left_uninitialised(folders: dict[str, Path]):
    torch.manual_seed(1)
    model, report = from_backbone(folders["qwen, old names"], fusion={"kind": "qformer"})
    assert set(report.started) == {name for name, _ in model.named_parameters() if name.startswith("qformer")}
    for name, parameter in model.qformer.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert 0.01 < float(parameter.detach().std()) < 0.3, name


def test_weights_keep_their_published_precision_unless_another_is_asked_for(
    folders: dict[str, Path], tmp_path: Path
):
    folder = published(tmp_path / "half", helium().to(torch.bfloat16))
    tower = folders["qwen, old names"]
    assert from_backbone(folder, vision=tower)[0].dtype == torch.bfloat16
    model, _ = from_backbone(folder, vision=tower, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.language_model.norm.weight, helium().model.norm.weight.bfloat16().float())


def test_a_saved_model_comes_back_the_same(folders: dict[str, Path], tmp_path: Path):
    model, _ = from_backbone(folders["llama"], vision=folders["qwen, old names"])
    model.save_pretrained(tmp_path / "fused")
    again = CasaForConditionalGeneration.from_pretrained(tmp_path / "fused").eval()
    seen = [seen_logits(each, PROMPT, [2], [picture()]) for each in (model, again)]
    assert torch.equal(*seen)


def test_no_tensor_is_held_once_it_is_copied(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    read, alive, most = WeightFiles.read, weakref.WeakSet(), 0

    def counted(files: WeightFiles, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(files, name)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(WeightFiles, "read", counted)
    _, report = from_backbone(folders["untied qwen"])
    assert len(report.taken) > 50
    assert most <= 2


def test_two_tensors_of_one_name_are_refused(copy: Any):
    folder = copy("qwen, old names")
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "double.safetensors")
    names["weight_map"]["extra"] = "double.safetensors"
    index.write_text(json.dumps(names))
    assert "holds two tensors named" in refusal(folder).what


def test_a_name_of_the_hub_is_found_in_the_hubs_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, folder in (("kyutai/helium-1-2b", "llama"), ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen, old names")):
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(folders[folder], repository / "snapshots" / "0123abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = from_backbone("kyutai/helium-1-2b", vision="Qwen/Qwen2.5-VL-3B-Instruct")
    local, _ = from_backbone(folders["llama"], vision=folders["qwen, old names"])
    assert torch.equal(text_logits(model, PROMPT), text_logits(local, PROMPT))
    with pytest.raises(StoreError, match="the hub gives no config") as caught:
        from_backbone("kyutai/another")
    assert "kyutai/another" in str(caught.value)
    assert caught.value.why


def refusal(*args: Any, **kwargs: Any) -> CasaError:
    with pytest.raises(CasaError) as caught:
        from_backbone(*args, **kwargs)
    assert caught.value.what
    assert caught.value.why
    assert caught.value.remedy
    return caught.value


def test_a_tower_of_another_width_is_refused(folders: dict[str, Path], tmp_path: Path):
    wide = published_as_released(tmp_path / "wide", qwen(out_hidden_size=48))
    error = refusal(folders["helium"], vision=wide)
    assert isinstance(error, ConfigError)
    assert "48 wide, the language model 32" in error.what


def test_a_language_model_without_a_tower_asks_for_one(folders: dict[str, Path]):
    assert "no vision tower of its own" in refusal(folders["helium"]).what


def test_a_model_of_another_type_is_refused_with_those_that_serve(copy: Any, folders: dict[str, Path]):
    error = refusal(rewrite_config(copy("helium"), model_type="mamba"))
    assert "'mamba'; supported: helium, llama, qwen2_5_vl" in error.why
    assert "cannot serve as vision tower" in refusal(folders["helium"], vision=folders["llama"]).what


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
            "scales its RoPE",
        ),
        ("llama", {"attention_bias": True}, "Helium's code cannot run"),
        ("llama", {"head_dim": 16}, "Helium's code cannot run"),
        (
            "qwen, old names",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "sliding-window",
        ),
        ("helium", {"hidden_size": 16, "head_dim": 4}, "wide"),
        ("helium", {"intermediate_size": 64}, "do not fit its configuration"),
        ("helium", {"num_hidden_layers": 4}, "lacks 9 tensors"),
        ("helium", {"num_hidden_layers": 2}, "have no place here"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused(
    name: str, changes: dict[str, Any], what: str, copy: Any, folders: dict[str, Path]
):
    assert what in refusal(rewrite_config(copy(name), **changes), vision=folders["qwen, new names"]).what


def test_a_missing_shard_is_named(copy: Any):
    folder = copy("qwen, old names")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(folder).what


def test_a_cut_shard_is_named(copy: Any):
    path = copy("qwen, old names") / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refusal(path.parent).what


def test_a_tensor_that_the_index_promises_and_no_shard_holds_is_named(copy: Any):
    path = copy("qwen, old names") / "model-00002-of-00003.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    assert name in refusal(path.parent).what


def test_a_missing_folder_of_weights_is_said(copy: Any):
    folder = copy("tied helium")
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder, vision=folder).what


def test_extra_tensors_inside_the_layers_are_refused(copy: Any, folders: dict[str, Path]):
    folder = copy("tied helium")
    extra = {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}
    with_weights(folder, stored(helium(tied=True)) | extra, shards=1)
    assert "q_norm" in refusal(folder, vision=folders["qwen, old names"]).what


def test_a_head_that_should_be_the_embedding_may_be_stored_but_not_differ(
    copy: Any, folders: dict[str, Path]
):
    folder, tower = copy("tied helium"), folders["qwen, old names"]
    weights = stored(helium(tied=True))
    head = weights["model.embed_tokens.weight"].clone()
    with_weights(folder, weights | {"lm_head.weight": head}, shards=1)
    assert from_backbone(folder, vision=tower)[0].config.tie_word_embeddings
    with_weights(folder, weights | {"lm_head.weight": head + 1}, shards=1)
    assert "differs from its embedding" in refusal(folder, vision=tower).what


def test_an_untied_model_without_a_head_is_refused(copy: Any, folders: dict[str, Path]):
    folder = rewrite_config(copy("tied helium"), tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(folder, vision=folders["qwen, old names"]).what


def test_old_tables_of_rope_beside_the_weights_are_no_weights(folders: dict[str, Path], tmp_path: Path):
    folder = published(tmp_path / "llama", llama())
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    with_weights(folder, stored(llama()) | table)
    _, report = from_backbone(folder, vision=folders["qwen, old names"])
    assert table.keys().isdisjoint(report.left_over)


def test_llamas_rows_are_reordered_within_each_head_only(folders: dict[str, Path]):
    """Rows 2i and 2i + 1 of our head are rows i and i + D/2 of Llama's."""
    model, _ = from_backbone(folders["llama"], vision=folders["qwen, old names"])
    theirs = LlamaForCausalLM.from_pretrained(folders["llama"]).model.layers[1].self_attn
    ours = model.language_model.layers[1].self_attn
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        for head in range(heads):
            for pair in range(4):
                for half in range(2):
                    mine = getattr(ours, name).weight[head * 8 + 2 * pair + half]
                    assert torch.equal(mine, getattr(theirs, name).weight[head * 8 + pair + 4 * half])
    assert torch.equal(ours.v_proj.weight, theirs.v_proj.weight)
