"""Checkpoint folders in a process that imports nothing of this package: trusted ones load, others do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casa_core.folder_code import MODULE
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import load_checkpoint
from tests.support.core.family import small_casa
from tests.support.paths import ROOT

AUTO = "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"


def run(program: str, home: Path, *, package: bool = True) -> subprocess.CompletedProcess[str]:
    """A process of its own; ``package``: whether it can import this one."""
    blocked = "" if package else "import sys; sys.modules['casa_core'] = None\n"
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", blocked + program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture(scope="module", params=["save_checkpoint", "save_pretrained", "pipeline"])
def folder(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint as each of the three ways writes it."""
    from transformers import pipeline

    if request.param == "save_checkpoint":
        return tiny_checkpoint
    path = tmp_path_factory.mktemp("saved")
    model, processor = load_checkpoint(tiny_checkpoint)
    if request.param == "pipeline":
        pipeline("image-text-to-text", model=model, processor=processor).save_pretrained(path)  # pyright: ignore
        return path
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_a_trusted_folder_loads_without_an_import(folder: Path, tmp_path: Path):
    done = run(
        f"""
import sys, transformers
assert not any(name.startswith("casa_core") for name in sys.modules)
for auto in {AUTO!r}[::-1]:
    loaded = getattr(transformers, auto).from_pretrained({str(folder)!r}, trust_remote_code=True)
    print(type(loaded).__module__, type(loaded).__name__)
    if auto == "AutoModelForImageTextToText":
        loaded.save_pretrained({str(tmp_path / "again")!r})
    if auto == "AutoProcessor":
        assert loaded.template == "casa-1"
        loaded.save_pretrained({str(tmp_path / "again")!r})
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    model = "casa_core.model CasaForConditionalGeneration"
    expected = ["casa_core.config CasaConfig", model, model, "casa_core.processing.processor CasaProcessor"]
    found = [line for line in done.stdout.splitlines() if line.startswith("casa_core.")]
    assert found == expected[::-1]
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {
        f"{MODULE}.py"
    }  # no copy of a module


def test_an_untrusted_folder_is_refused_and_never_half_loaded(tiny_checkpoint: Path, tmp_path: Path):
    done = run(
        f"""
import transformers
for auto in {AUTO!r}:
    try:
        loaded = getattr(transformers, auto).from_pretrained({str(tiny_checkpoint)!r})
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError(type(loaded))
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_without_the_package_the_error_names_it(tiny_checkpoint: Path, tmp_path: Path):
    program = f"import transformers; transformers.AutoProcessor.from_pretrained({str(tiny_checkpoint)!r}, "
    done = run(program + "trust_remote_code=True)", tmp_path, package=False)
    assert done.returncode == 1
    assert "This checkpoint needs the Python package casa" in done.stderr.splitlines()[-1]


def test_folders_written_before_still_load(tmp_path: Path):
    """Without the module, and without a map in either file."""
    small_casa().save_pretrained(tmp_path)
    before: Any = CasaForConditionalGeneration.from_pretrained(tmp_path)
    CasaProcessor(build_tokenizer(["what is this"] * 3, 300), max_side=48).save_pretrained(tmp_path)
    (tmp_path / f"{MODULE}.py").unlink()
    for name in ("config.json", "processor_config.json"):
        stored = json.loads((tmp_path / name).read_text())
        assert set(stored.pop("auto_map").values()) <= {
            f"{MODULE}.{known}" for known in ("CasaConfig", "CasaForConditionalGeneration", "CasaProcessor")
        }
        (tmp_path / name).write_text(json.dumps(stored))
    assert CasaProcessor.from_pretrained(tmp_path).max_side == 48
    again: Any = CasaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.to_dict() == before.config.to_dict()
    assert "auto_map" not in before.config.to_dict()
