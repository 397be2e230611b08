"""Checkpoint folders: what is loaded is what was saved, and what is not whole or has drifted is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.errors import StoreError
from casa_core.hf_batch import read_padded
from casa_core.inputs import IMAGE_INPUTS
from casa_core.model import CasaForConditionalGeneration
from casa_core.types import Sample, Text
from casa_core.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.support.paths import ROOT


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_weights_settings_and_tokens_come_back_as_they_were(tiny_checkpoint: Path, tmp_path: Path):
    model, processor = load_checkpoint(tiny_checkpoint)
    save_checkpoint(tmp_path / "again", model, processor, provenance={"steps": 3})
    again, other = load_checkpoint(tmp_path / "again")
    assert not again.training
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, loaded[name]), name
        assert tensor.dtype == loaded[name].dtype
    sample = Sample(source="test", sample_id="1", parts=(Text(role="user", text="what colour is 3"),))
    assert other.encode(sample, []) == processor.encode(sample, [])
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["provenance"] == {"steps": 3}
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_tied_head_is_stored_once_and_stays_tied(tmp_path: Path, tiny_checkpoint: Path):
    from tests.support.evaluate.checkpoint import write_checkpoint

    untied, processor = load_checkpoint(write_checkpoint(tmp_path / "untied", blind=False))
    untied.config.tie_word_embeddings = untied.config.text_config.tie_word_embeddings = True
    save_checkpoint(tmp_path / "tied", CasaForConditionalGeneration(untied.config), processor)
    model, _ = load_checkpoint(tmp_path / "tied")
    assert model.config.text_config.tie_word_embeddings
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_transformers_auto_classes_load_it_once_casa_core_auto_is_imported(tiny_checkpoint: Path):
    program = f"""
import sys, casa_core
assert "torch" not in sys.modules
import casa_core.auto
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor):
    print(type(auto.from_pretrained({str(tiny_checkpoint)!r})).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    model = "CasaForConditionalGeneration"
    assert done.stdout.split() == ["CasaConfig", model, model, "CasaProcessor"]


def test_a_folder_that_was_not_finished_is_refused(folder: Path):
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not a finished checkpoint"):
        load_checkpoint(folder)
    with pytest.raises(StoreError, match="is not a finished checkpoint"):
        load_checkpoint(folder / "nowhere")


def test_a_template_that_changed_since_training_is_refused(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "template_hash": "of another time"}))
    with pytest.raises(StoreError, match="has changed since it was trained"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("language_model.norm.weight"), "are not in it"),
        (lambda weights: weights.update(more=torch.zeros(1)), "does not use"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], words: str, folder: Path
):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=words):
        load_checkpoint(folder)


def test_generate_ends_where_the_template_ends_a_turn(tiny_checkpoint: Path, tmp_path: Path):
    model, processor = load_checkpoint(tiny_checkpoint)
    model.generation_config.eos_token_id = None
    save_checkpoint(tmp_path / "silent", model, processor)
    again, _ = load_checkpoint(tmp_path / "silent")
    assert again.generation_config.eos_token_id == processor.end_id
    assert again.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = [3]
    save_checkpoint(tmp_path / "two", model, processor)
    again, _ = load_checkpoint(tmp_path / "two")
    assert again.generation_config.eos_token_id == sorted([3, processor.end_id])
    assert model.generation_config.eos_token_id == [3]  # the model at hand is left as it is


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_conversation_goes_through_processor_and_generate_as_with_any_model(tiny_checkpoint: Path):
    """The batch of the auto classes gives the tokens that the engine's own loop gives each conversation."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    processor: Any = AutoProcessor.from_pretrained(tiny_checkpoint)
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    conversations = [
        [{"role": "user", "content": [{"type": "text", "text": "what colour is shape 3"}]}],
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "describe"}, {"type": "image"}],
            }
        ],
    ]
    images = [[], [picture, picture[::-1].copy()]]
    inputs = processor(conversations, images)
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert not inputs["attention_mask"][1, 0] or not inputs["attention_mask"][0, 0]
    for number, (conversation, pictures) in enumerate(zip(conversations, images, strict=True)):
        alone = processor([conversation], [pictures])
        sequences = KVBatch(model, 1)
        (chunk,) = read_padded(
            model.config, alone["input_ids"], None, {name: alone.get(name) for name in IMAGE_INPUTS}
        ).chunks(0, alone["input_ids"].shape[1])
        expected: list[int] = []
        while len(expected) < 5:
            expected.append(int(sequences.extend([chunk])[0].argmax()))
            chunk = TokenChunk(expected[-1:])
        assert tokens[number, inputs["input_ids"].shape[1] :].tolist() == expected


def test_nothing_is_finished_before_everything_is_written(tiny_checkpoint: Path, tmp_path: Path):
    model, processor = load_checkpoint(tiny_checkpoint)

    class Killed(Exception):
        """Stands for a power cut."""

    class Unsaveable(type(processor)):
        def save_pretrained(self, *_args: object, **_options: object) -> list[str]:
            raise Killed

    processor.__class__ = Unsaveable
    with pytest.raises(Killed):
        save_checkpoint(tmp_path / "model", model, processor)
    with pytest.raises(StoreError, match="is not a finished checkpoint"):
        load_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("damage", ["half", "empty", "zeros", "another"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "manifest.json"],
)
def test_a_damaged_file_of_a_checkpoint_is_named(
    tiny_checkpoint: Path, tmp_path: Path, name: str, damage: str
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    whole = (folder / name).read_bytes()
    left = {"half": whole[: len(whole) // 2], "empty": b"", "zeros": bytes(len(whole)), "another": b"[1, 2]"}
    (folder / name).write_bytes(left[damage])
    with pytest.raises(StoreError) as caught:
        load_checkpoint(folder)
    named = "*.safetensors" if name.endswith("safetensors") else name
    assert named in caught.value.what
    assert "casa verify" in caught.value.remedy


def test_a_checkpoint_without_its_image_settings_is_not_loaded_with_others(
    tiny_checkpoint: Path, tmp_path: Path
):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").unlink()
    with pytest.raises(StoreError, match=r"processor_config\.json"):
        load_checkpoint(tmp_path / "model")
