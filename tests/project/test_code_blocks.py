"""Every Python block of the documents runs as it stands, but for the names of files, models and addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Image, Sample, Text
from pipelines.data.read.source.files import Files
from tests.support.core.engine import picture, png
from tests.support.data.media import counting_video
from tests.support.paths import ROOT
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.server import MODEL, running, settings_with

QUESTION = "what colour is shape 3"
NOT_HERE = {
    ("docs/checkpoints.md", 0): "the released weights, of which there are 12 GB",
    ("docs/models.md", 0): "two repositories of the hub",
}
"""Blocks that need what no test can have; their functions are tested in tests/core/weights on small files."""


MODELS = ("path/to/checkpoint", "path/to/model")
IN_SMALL = {
    "https://example.org/shapes.png": "picture.png",
    'device_map={"": 0}': 'device_map={"": "cpu"}',
    "casa-quickstart": MODEL,
    'TrainingArguments("out",': 'TrainingArguments("out", max_steps=1, report_to="none", use_cpu=True,',
    "recent=1024, slack=128": "recent=64, slack=32",
    "layers[3]": "layers[0]",
    'open_reader("csv_captions", str(tmp_path), "photos", {})': (  # none of the tree's own readers
        'CsvCaptionReader(files=Files(str(tmp_path)), source="photos")'
    ),
    '"/dev/video0", format="v4l2"': '"testsrc=size=64x64:rate=10:duration=2", format="lavfi"',
}
"""As written → as the test has it: names, devices, and sizes that the small model has not."""


def blocks(path: Path) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", path.read_text(encoding="utf-8"))


DOCUMENTS = {
    str(path.relative_to(ROOT)): blocks(path)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if blocks(path)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands: a picture and a clip are there."""
    PILImage.fromarray(picture(1)).save(tmp_path / "picture.png")
    counting_video(tmp_path / "clip.mp4", frames=20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def endpoint(tiny_checkpoint: Path) -> Iterator[str]:
    with running(Engine.from_pretrained(tiny_checkpoint, device="cpu"), settings_with()) as url:
        yield url


def sample(words: str = QUESTION) -> Sample:
    return Sample(source="docs", sample_id="0", parts=(Image(data=png(1)), Text(role="user", text=words)))


def request_() -> GenerationRequest:
    return GenerationRequest(sample=sample(), sampling=SamplingParams(max_new_tokens=4))


def chat(words: str, answer: str | None = None) -> list[dict[str, Any]]:
    shown = {"type": "image", "image": PILImage.fromarray(picture(2))}
    messages = [{"role": "user", "content": [shown, {"type": "text", "text": words}]}]
    return [*messages, {"role": "assistant", "content": answer}] if answer else messages


def names_of(document: str, checkpoint: Path) -> dict[str, Any]:
    """What a reader of a document has before its first block."""
    prepared: dict[str, Callable[[], dict[str, Any]]] = {
        "README.md": lambda: {"folder": checkpoint},
        "docs/inspect.md": lambda: {
            "engine": Engine.from_pretrained(
                write_checkpoint(Path("casa-model"), [QUESTION, "red green blue"], kind="casa"), device="cpu"
            ),
            "samples": [sample()],
            "requests": [request_()],
        },
        "docs/guides/own_corpus.md": lambda: {"Files": Files},
        "docs/models.md": lambda: {"torch": torch},
        "docs/streaming.md": lambda: {
            "frames": [picture(1), picture(2)],
            "frame": png(3),
            "request": request_(),
        },
        "docs/transformers.md": lambda: {"others": chat("is it"), "dataset": [chat("is it", "red")] * 8},
    }
    return prepared.get(document, dict)()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_blocks_of_a_document_run(
    document: str, tiny_checkpoint: Path, folder: Path, request: pytest.FixtureRequest
):
    names = names_of(document, tiny_checkpoint)
    for number, block in enumerate(DOCUMENTS[document]):
        if (document, number) in NOT_HERE:
            if document == "docs/models.md":
                names["model"] = full_size_without_weights()
            continue
        for written, here in {**IN_SMALL, **dict.fromkeys(MODELS, str(tiny_checkpoint))}.items():
            block = block.replace(written, here)
        if "http://127.0.0.1:8000" in block:
            block = block.replace("http://127.0.0.1:8000", request.getfixturevalue("endpoint"))
        if "images=[picture]" in block:  # the reader's own picture
            names["picture"] = PILImage.open(folder / "picture.png")
        exec(compile(block, f"{document}, block {number}", "exec"), names)
    for name in [name for name in names if name.startswith("test_")]:  # tests that a document shows
        names[name](folder)


def full_size_without_weights() -> Any:
    from casa_core.backbones.published import qwen2_5_vl_3b_text, qwen2_5_vl_3b_vision
    from casa_core.config import CasaConfig
    from casa_core.model import CasaForConditionalGeneration

    config = CasaConfig(
        text_config=qwen2_5_vl_3b_text(), vision_config=qwen2_5_vl_3b_vision(), fusion={"kind": "casa"}
    )
    with torch.device("meta"):
        return CasaForConditionalGeneration(config)


def test_blocks_that_are_left_out_are_there():
    for document, number in NOT_HERE:
        assert number < len(DOCUMENTS[document])
