"""Checkpoint folders: what is loaded is what was saved, and what is not whole or has drifted is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from casa_core.checkpoint import load_checkpoint, save_checkpoint
from casa_core.errors import StoreError
from casa_core.types import Sample, Text

ROOT = Path(__file__).resolve().parents[1]


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
    from tests.support.evaluate_checkpoint import write_checkpoint

    model, _ = load_checkpoint(write_checkpoint(tmp_path / "tied", blind=False))
    assert model.config.text_config.tie_word_embeddings
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_transformers_auto_classes_load_it_once_this_package_is_imported(tiny_checkpoint: Path):
    program = f"""
import casa_core.checkpoint
from transformers import AutoConfig, AutoModel, AutoProcessor
for auto in (AutoConfig, AutoModel, AutoProcessor):
    print(type(auto.from_pretrained({str(tiny_checkpoint)!r})).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["CasaConfig", "CasaForConditionalGeneration", "CasaProcessor"]


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


def test_nothing_is_finished_before_everything_is_written(tiny_checkpoint: Path, tmp_path: Path):
    model, processor = load_checkpoint(tiny_checkpoint)

    class Killed(Exception):
        """Stands for a power cut."""

    class Unsaveable(type(processor)):
        def save_pretrained(self, *_args: object, **_options: object) -> None:
            raise Killed

    processor.__class__ = Unsaveable
    with pytest.raises(Killed):
        save_checkpoint(tmp_path / "model", model, processor)
    with pytest.raises(StoreError, match="is not a finished checkpoint"):
        load_checkpoint(tmp_path / "model")
