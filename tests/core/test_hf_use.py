"""What people do with a transformers model: cast, copy and offload it, train it with the Trainer, ask it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image as PILImage
from torch import nn
from transformers import Trainer, TrainingArguments, pipeline

from casa_core.backbones.tiny import tiny_config
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import ConfigError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Sample, Text
from casa_core.weights.checkpoint import save_checkpoint
from tests.support.core.engine import picture, png
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind, TowerKind, small_casa
from tests.support.core.hf_rows import Row, padded, row, three_rows

Change = Callable[[nn.Module], nn.Module]
CASTS: dict[str, Change] = {
    "to": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "through float16": lambda model: model.half().float().bfloat16(),
}


def loaded(folder: Path, **options: Any) -> CasaForConditionalGeneration:
    return cast(Any, CasaForConditionalGeneration.from_pretrained(folder, **options))


def far_apart() -> list[Row]:
    """A picture of many tokens far behind the beginning, where rounded frequencies are wrong by radians."""
    return [row(1500, {1400: [(24, 40)]}, 5, "qwen")]


@pytest.mark.parametrize("cast_to", CASTS)
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_a_model_cast_after_loading_turns_its_keys_as_exactly_as_one_loaded_in_that_type(
    backbone: BackboneKind, cast_to: str, tmp_path: Path
):
    model = small_casa(backbone, tower="qwen", **FUSIONS["casa"])
    model.bfloat16().float()  # weights that bf16 holds
    model.save_pretrained(tmp_path)
    inputs = padded(far_apart())
    expected = loaded(tmp_path, dtype=torch.bfloat16)(**inputs).logits
    assert expected.dtype == torch.bfloat16
    assert torch.equal(CASTS[cast_to](loaded(tmp_path))(**inputs).logits, expected)


def test_frequencies_go_along_to_another_precision_that_holds_them():
    model = small_casa("qwen", tower="qwen")
    angles = [buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    for change in (*CASTS.values(), lambda model: model.double()):
        changed = change(copy.deepcopy(model))
        again = [buffer for name, buffer in changed.named_buffers() if name.endswith("inv_freq")]
        assert len(again) == len(angles) == 4
        for one, other in zip(again, angles, strict=True):
            assert one.dtype in (torch.float32, torch.float64)
            torch.testing.assert_close(one.float(), other, rtol=0, atol=0)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(how: Callable[[Any], Any]):
    model, inputs = small_casa(tied=True, **FUSIONS["casa-replace"]), padded(three_rows())
    expected = model(**inputs).logits
    other = how(model)
    assert other.lm_head.weight is other.language_model.embed_tokens.weight
    assert torch.equal(other(**inputs).logits, expected)
    other.lm_head.weight.zero_()
    assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize(("backbone", "tower"), [("helium", "tiny"), ("qwen", "qwen")])
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_layers_that_wait_on_a_disk_compute_the_same(
    fusion: str, backbone: BackboneKind, tower: TowerKind, tmp_path: Path
):
    model, inputs = small_casa(backbone, tower=tower, **FUSIONS[fusion]), padded(three_rows(tower))
    model.save_pretrained(tmp_path)
    places = {name: "cpu" for name, _ in model.named_children() if name != "language_model"}
    places |= {f"language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb", "layers.0")}
    places |= {"language_model.layers.1": "disk", "language_model.layers.2": "disk"}
    offloaded = loaded(tmp_path, device_map=places, offload_folder=tmp_path / "waiting")
    assert next(offloaded.language_model.layers[2].parameters()).is_meta
    # Equal but for the last bit: a mapped file's weights lie at any address, and a matrix product's kernel
    # sums in another order where they are not aligned to 64 bytes.
    torch.testing.assert_close(offloaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=2e-6)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    expected = cast(Any, model).generate(**inputs, **settings)
    assert torch.equal(cast(Any, offloaded).generate(**inputs, **settings), expected)


def test_a_model_spread_over_several_devices_is_refused_with_the_remedy():
    model, inputs = small_casa(), padded(three_rows())
    model.hf_device_map = {"language_model.layers.0": 0, "language_model.layers.1": 1, "lm_head": "cpu"}
    with pytest.raises(ConfigError, match="over the devices 0, 1") as refused:
        model(**inputs)
    assert "device_map=" in refused.value.remedy
    model.hf_device_map = {"language_model": "cpu", "lm_head": "disk", "vision_tower": 0}
    assert model(**inputs).logits.isfinite().all()


class Twice(torch.utils.data.Dataset[Row]):
    """The same three rows, twice over."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Row:
        return three_rows()[index % 3]


def with_labels(rows: list[Row]) -> dict[str, Any]:
    inputs = padded(rows)
    return inputs | {"labels": inputs["input_ids"].clone()}


def test_transformers_trainer_trains_evaluates_and_saves(tmp_path: Path):
    model = small_casa(**FUSIONS["ca-gated"])
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=8,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, with_labels, Twice(), Twice())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    trainer.save_model(str(tmp_path / "model"))
    again, inputs = loaded(tmp_path / "model"), padded(three_rows())
    saved, trained = again.state_dict(), model.state_dict()
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in trained)
    # Equal weights; where they lie in memory may still pick another kernel on some CPUs.
    torch.testing.assert_close(again(**inputs).logits, model.eval()(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = CasaProcessor(build_tokenizer(["what is this a red circle"] * 3, 300))
    tokenizer = processor.tokenizer
    config = tiny_config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=processor.end_id
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    save_checkpoint(path, CasaForConditionalGeneration(config).eval(), processor)
    return path


def test_transformers_pipeline_says_what_the_engine_says(folder: Path):
    ask = cast(Any, pipeline)("image-text-to-text", model=str(folder))
    content = [
        {"type": "image", "image": PILImage.fromarray(picture(1))},
        {"type": "text", "text": "what is this"},
    ]
    settings = {"max_new_tokens": 5, "return_full_text": False, "generate_kwargs": {"do_sample": False}}
    (answer,) = ask(text=[{"role": "user", "content": content}], **settings)
    sample = Sample(
        source="test", sample_id="1", parts=(Image(data=png(1)), Text(role="user", text="what is this"))
    )
    request = GenerationRequest(sample=sample, sampling=SamplingParams(max_new_tokens=5))
    (expected,) = Engine.from_pretrained(folder, device="cpu").generate([request])
    assert expected.text
    assert answer["generated_text"].strip() == expected.text


def test_an_answers_beginning_is_not_continued(folder: Path):
    processor = CasaProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "a red"}]
    with pytest.raises(ConfigError, match="continue_final_message"):
        cast(Any, processor).apply_chat_template(messages, continue_final_message=True)
