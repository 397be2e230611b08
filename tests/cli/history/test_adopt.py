"""``casa adopt``: a checkpoint made by hand takes the place of a recipe's training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.cli.app import app
from pipelines.dag import artifact
from pipelines.recipe import load_recipe
from pipelines.train.model_config import model_config
from tests.support.evaluate.checkpoint import TEXTS, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the quickstart's model with random weights."""
    folder = tmp_path_factory.mktemp("by-hand")
    tokenizer = build_tokenizer(TEXTS, 300)
    assert isinstance(tokenizer.pad_token_id, int)
    assert isinstance(tokenizer.eos_token_id, int)
    config = model_config(
        load_recipe("quickstart").model,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_checkpoint(folder, CasaForConditionalGeneration(config), CasaProcessor(tokenizer, max_side=64))
    return folder


def casa(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_a_checkpoint_made_by_hand_takes_the_place_of_a_recipes_training(checkpoint: Path, tmp_path: Path):
    store = str(tmp_path / "store")
    quickstart = ["--as", "train", "--recipe", "quickstart", "--store", store]
    [taken] = json.loads(casa("adopt", str(checkpoint), *quickstart, "--json"))
    planned = json.loads(casa("plan", "quickstart", "--set", f"where.store={store}", "--json"))
    stages = {stage["stage"]: stage for stage in planned}
    assert stages["train"]["status"] == "done"
    assert stages["train"]["artifact"] == taken["artifact"]
    assert stages["train-blind"]["status"] == stages["pack"]["status"] == "run"
    folder = Path(taken["artifact"])
    assert artifact.verify(folder) == []
    weights = (folder / "model" / "model.safetensors").read_bytes()
    assert weights == (checkpoint / "model.safetensors").read_bytes()
    assert f"adopted from {checkpoint}" in casa("lineage", "train@latest", "--store", store)
    assert "has a model already" in casa("adopt", str(checkpoint), *quickstart, code=2)
    assert "was made elsewhere" in casa("reproduce", "train@latest", "--check", "--store", store, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--as", "pack"], "without an artifact's manifest"),
        (["--as", "train"], "without an artifact's manifest"),
        (
            ["--as", "train", "--recipe", "quickstart", "--set", "model.fusion.placement=before"],
            "Its fusion.placement is 'parallel'",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, words: list[str], message: str
):
    assert message in casa("adopt", str(checkpoint), *words, "--store", str(tmp_path), code=2)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path):
    other = write_checkpoint(tmp_path / "other", blind=False)
    words = ["--as", "train", "--recipe", "quickstart", "--store", str(tmp_path / "store")]
    assert "Its text_config." in casa("adopt", str(other), *words, code=2)
