"""What training starts from: published weights with room for the template's tokens, or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from casa_core.config import STAGES
from casa_core.errors import ConfigError
from casa_core.param_groups import parameter_groups
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import SPECIAL_TOKENS, add_missing_special_tokens, build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.recipe.model import TrainedModel
from pipelines.train.build import build_model
from pipelines.train.model_config import model_config
from tests.support.core.published import VOCABULARY, helium, published, qwen

WORDS = ["red circle", "blue square"]


def processor(words: list[str] = WORDS) -> CasaProcessor:
    return CasaProcessor(build_tokenizer(words, 300), max_side=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("published")
    return {
        "language_model": str(published(root / "helium", helium())),
        "vision_tower": str(published(root / "qwen", qwen())),
    }


def model(backbone: str = "tiny", fusion: dict[str, Any] | None = None, **rest: Any) -> TrainedModel:
    values = {"backbone": backbone, "fusion": fusion or {"kind": "cross_attention"}, **rest}
    return TrainedModel.model_validate(values)


def test_a_text_only_tokenizer_gets_the_templates_tokens_behind_its_own():
    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel()
    bytes_only.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    bytes_only.train_from_iterator(WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="</s>")
    before = len(tokenizer)
    assert add_missing_special_tokens(tokenizer, "casa-1") == 7
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(before, before + 7))
    assert tokenizer.pad_token == SPECIAL_TOKENS[0]
    assert CasaProcessor(tokenizer).end_id == before + 1
    assert add_missing_special_tokens(tokenizer, "casa-1") == 0
    read = tokenizer.decode(tokenizer.encode("red<|end|> circle"), skip_special_tokens=True)
    assert "".join(read).split() == ["red", "circle"]


def test_published_weights_are_taken_and_new_tokens_start_as_the_average(weights: dict[str, str]):
    built = build_model(model("helium", weights=weights), processor(), seed=0)
    size = len(processor().tokenizer)
    assert built.config.text_config.vocab_size == size > VOCABULARY
    theirs = helium()
    for ours, table in (
        (built.get_input_embeddings().weight, theirs.model.embed_tokens.weight),
        (built.get_output_embeddings().weight, theirs.lm_head.weight),
    ):
        assert isinstance(ours, torch.Tensor)
        assert torch.equal(ours[:VOCABULARY], table)
        torch.testing.assert_close(ours[VOCABULARY:], table.mean(dim=0).expand(size - VOCABULARY, -1))
    assert built.training
    assert all(parameter.dtype == torch.float32 for parameter in built.parameters())


def test_new_tokens_train_with_the_embedding_at_the_existing_rate(weights: dict[str, str]):
    built = build_model(model("helium", weights=weights), processor(), seed=0)
    rates = {
        id(parameter): group["lr"]
        for group in parameter_groups(built, replace(STAGES["helium-image"], vision_blocks=1))
        for parameter in group["params"]
    }
    for table in (built.get_input_embeddings().weight, built.get_output_embeddings().weight):
        assert len(table) == len(processor().tokenizer)
        assert rates[id(table)] == 1e-5


def test_a_frozen_language_model_must_have_the_templates_tokens(weights: dict[str, str]):
    with pytest.raises(ConfigError, match=r"lacks \d+ tokens of the chat template"):
        build_model(model("helium", weights=weights), processor(), seed=0, text_frozen=True)


def test_a_model_that_computes_in_bf16_is_built_in_it_and_its_positions_stay_exact(weights: dict[str, str]):
    exact = build_model(model("helium", weights=weights), processor(), seed=0)
    rounded = build_model(model("helium", weights=weights), processor(), seed=0, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    table, theirs = (built.language_model.embed_tokens.weight for built in (rounded, exact))
    assert torch.equal(table[:VOCABULARY], theirs[:VOCABULARY].bfloat16())
    frequencies = dict(exact.named_buffers())
    for name, buffer in rounded.named_buffers():
        if name.endswith("inv_freq"):
            assert torch.equal(buffer, frequencies[name]), name


def test_weights_of_another_family_are_refused(weights: dict[str, str]):
    with pytest.raises(
        ConfigError, match=r"(?s)is no qwen2_5_vl model.*Set model.backbone to helium"
    ) as refused:
        build_model(model("qwen2_5_vl", weights=weights), processor(), seed=0)
    assert "type helium" in str(refused.value)


def test_a_published_backbone_without_weights_is_refused():
    with pytest.raises(ConfigError, match=r"(?s)no weights to start from.*model.weights"):
        build_model(model("helium"), processor(), seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "model"
    save_checkpoint(folder, build_model(model(), processor(), seed=4), processor())
    return folder


def test_training_goes_on_from_a_checkpoint(finished: Path):
    again = build_model(model(), processor(), seed=5, start=finished)
    first = build_model(model(), processor(), seed=4)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, first.get_parameter(name)), name


@pytest.mark.parametrize(
    ("changed", "words", "complaint"),
    [
        ({"fusion": {"kind": "casa"}}, WORDS, r"Its kind is 'cross_attention'.*Use the fusion"),
        ({"backbone": "helium"}, WORDS, r"is no helium model.*Set model.backbone to tiny"),
        ({}, ["green"], r"another tokenizer than the packed data.*model.tokenizer.path"),
    ],
)
def test_a_checkpoint_of_another_model_or_tokenizer_is_refused(
    finished: Path, changed: dict[str, Any], words: list[str], complaint: str
):
    with pytest.raises(ConfigError, match=f"(?s){complaint}"):
        build_model(model(**changed), processor(words), seed=0, start=finished)


@pytest.mark.parametrize("backbone", ["helium", "qwen2_5_vl"])
def test_the_small_model_has_the_large_ones_layers_at_another_width(backbone: str):
    full, small = (
        model_config(
            model(backbone, {"kind": "casa", "placement": "replace"}),
            vocab_size=300,
            pad_token_id=0,
            eos_token_id=1,
            scale=scale,
        )
        for scale in ("full", "small")
    )
    assert full.text_config.hidden_size == 2048
    assert small.text_config.hidden_size == 64
    assert full.text_config.model_type == small.text_config.model_type
    assert type(full.vision_config) is type(small.vision_config)
    same = ("patch_size", "spatial_merge_size", "temporal_patch_size", "window_size", "in_channels")
    assert all(getattr(full.vision_config, name) == getattr(small.vision_config, name) for name in same)
    assert full.fusion == small.fusion
