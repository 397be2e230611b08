"""One sample through training, evaluation and serving: the same tokens, the same pixels, the same logits."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from casa_core.batch import collate
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Sample, Text
from pipelines.dag.settings import read_settings
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode import encode_sample
from pipelines.data.store.readers import CleanReader
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.held_out.board import BenchmarkSettings
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all
from pipelines.train.loader import SequenceReader
from tests.support.core.artifacts import write_pack
from tests.support.evaluate.checkpoint import write_checkpoint
from tests.support.evaluate.run import EVALUATE, vqa_rows, write_clean
from tests.support.naive.packing import packed_row
from tests.support.serve.server import MODEL, running, settings_with

ROWS, WALKED = 3, 1
"""Samples of one packed sequence, and which of them is walked: it has neighbours on either side."""
TOKENS, TOP = 6, 5
SETTINGS = read_settings(BenchmarkSettings, EVALUATE)


@dataclass
class Artifacts:
    checkpoint: Path
    clean: Path
    pack: Path

    @property
    def processor(self) -> CasaProcessor:
        found = CasaProcessor.from_pretrained(self.checkpoint)
        assert isinstance(found, CasaProcessor)
        return found

    @property
    def held_out(self) -> HeldOut:
        return HeldOut.of(self.clean, SETTINGS)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The same samples held out and trained on, packed by the pack stage's own encoding."""
    root = tmp_path_factory.mktemp("walk")
    found = Artifacts(write_checkpoint(root / "model", blind=False), root / "vqa", root / "pack")
    write_clean(found.clean, vqa_rows(ROWS))
    card = json.loads((found.clean / "card.json").read_text())
    card["splits"]["train"] = card["splits"][HELD_OUT]
    (found.clean / "card.json").write_text(json.dumps(card))
    reader, budget = CleanReader(found.clean, "train"), Budget(512, 512)
    encoded: list[Any] = [
        encode_sample(
            found.processor, row, reader.sample(row), Limits(pictures=budget, video=budget, split=False)
        )
        for row in range(ROWS)
    ]
    write_pack(found.pack, [packed_row([("vqa", row) for [row] in encoded], "image")], [])
    return found


@pytest.fixture(scope="module")
def trained(artifacts: Artifacts) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """The walked document as a training step reads it: token ids, pixels, and the logits of its forward."""
    sequence = SequenceReader(artifacts.pack, {"vqa": artifacts.clean}, artifacts.processor)[0]
    start, end = sequence.document_starts[WALKED : WALKED + 2]
    model = CasaForConditionalGeneration.from_pretrained(artifacts.checkpoint).eval()
    inputs = {name: value for name, value in collate([sequence]).inputs().items() if name != "loss_mask"}
    with torch.no_grad():
        logits_LV = model(**inputs).logits[0, start:end]
    return list(sequence.input_ids[start:end]), sequence.patches_PE[WALKED], logits_LV


@pytest.fixture(scope="module")
def question(artifacts: Artifacts) -> Sample:
    [one] = artifacts.held_out.read(WALKED, WALKED + 1)
    return one.sample


@pytest.fixture(scope="module")
def served(artifacts: Artifacts, question: Sample) -> tuple[dict[str, Any], Sample]:
    """The endpoint's answer to the same question over HTTP, and the sample that its engine was given."""
    given: list[Sample] = []

    class Noting(Engine):
        def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
            given.append(request.sample)
            return super().submit(request, streamed=streamed)

    picture, text = question.parts
    assert isinstance(text, Text)
    assert not isinstance(picture, Text)
    assert picture.data is not None
    address = f"data:image/png;base64,{base64.b64encode(picture.data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text.text}]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    engine = Noting.from_pretrained(artifacts.checkpoint)
    with running(engine, settings_with(model_folder=artifacts.checkpoint)) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    [sample] = given
    return answer["choices"][0], sample


def pixels(chunk: TokenChunk) -> torch.Tensor:
    [patches_PE] = chunk.patches_PE
    return patches_PE


def test_its_tokens_and_pixels_are_the_same_everywhere(
    artifacts: Artifacts,
    trained: tuple[list[int], torch.Tensor, torch.Tensor],
    question: Sample,
    served: tuple[dict[str, Any], Sample],
):
    ids, patches_PE, _ = trained
    for sample in (question, served[1]):
        chunk = prompt_chunk(sample, artifacts.processor, images_withheld=False)
        assert list(chunk.ids) == ids[: len(chunk.ids)]
        assert len(chunk.ids) < len(ids), "training reads the answer too"
        assert torch.equal(pixels(chunk), patches_PE)


def log_probabilities(logits_LV: torch.Tensor, at: int, tokens: Sequence[int]) -> list[float]:
    return logits_LV[at].double().log_softmax(-1)[list(tokens)].tolist()


def test_its_logits_and_its_answer_are_the_same_everywhere(
    artifacts: Artifacts,
    trained: tuple[list[int], torch.Tensor, torch.Tensor],
    question: Sample,
    served: tuple[dict[str, Any], Sample],
):
    engine = Engine.from_pretrained(artifacts.checkpoint)
    sampling = SamplingParams(max_new_tokens=TOKENS, logprobs=TOP)
    [result] = engine.generate([GenerationRequest(sample=question, sampling=sampling)])
    first = result.logprobs[0]
    prompt = len(prompt_chunk(question, artifacts.processor, images_withheld=False).ids)
    _, _, logits_LV = trained
    expected = log_probabilities(logits_LV, prompt - 1, [one.token for one in first.top])
    assert [one.logprob for one in first.top] == pytest.approx(expected, abs=1e-5)
    assert first.token == int(logits_LV[prompt - 1].argmax())

    model = Model(
        folder=artifacts.checkpoint,
        digest="",
        fingerprint=model_fingerprint(artifacts.checkpoint),
        sampling=SamplingParams(max_new_tokens=TOKENS),
    )
    store = AnswerStore(artifacts.pack.parent / "answers", model.fingerprint)
    source = HeldOut(folder=artifacts.clean, counts=(1,) * ROWS, max_new_tokens=TOKENS)
    rows = answer_all(model, {"vqa": source}, store)
    assert rows[WALKED]["answer"] == result.text == served[0]["message"]["content"]
    tokens = served[0]["logprobs"]["content"]
    assert [one["logprob"] for one in tokens] == [one.logprob for one in result.logprobs]
    assert [one["logprob"] for one in tokens[0]["top_logprobs"]] == [one.logprob for one in first.top]
