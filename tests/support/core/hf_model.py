"""A small checkpoint as a user of transformers holds it, and answers computed without ``generate()``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from casa_core.backbones.tiny import tiny_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.weights.checkpoint import save_checkpoint
from tests.support.core.engine import png

NEW = 5


def ask(*content: Any, answer: str | None = None) -> list[dict[str, Any]]:
    """A user's message of texts and pictures, and the answer to it."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in content
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    return messages + ([] if answer is None else [{"role": "assistant", "content": answer}])


def write_folder(folder: Path) -> Path:
    """A checkpoint of random weights."""
    processor = CasaProcessor(build_tokenizer(["what is this and that a red circle"] * 3, 300))
    config = tiny_config(
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.end_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(folder, CasaForConditionalGeneration(config).eval(), processor)
    return folder


class HfModel:
    """Everything a case needs.

    Attributes:
        folder: The checkpoint.
        model, processor: As the auto classes load them.
        chats: Conversations of different length with no picture, one and three.
        inputs: The one with a picture, ready to be answered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder)
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.chats = [
            ask("what"),
            ask(png(1), "what is this"),
            ask(png(2, 16, 16), "this and", png(3), png(4, 32, 64), answer="a red") + ask("and that circle"),
        ]
        self.inputs: dict[str, Any] = dict(self.prompt(self.chats[1]))

    def prompt(self, conversation: Any, **options: Any) -> Any:
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True, **options)

    def forward(self, **changes: Any) -> Any:
        """A plain forward of the inputs, with some replaced; ``None``: left out."""
        given = {name: value for name, value in (self.inputs | changes).items() if value is not None}
        with torch.no_grad():
            return self.model(**given)

    def generate(self, **options: Any) -> Any:
        return self.model.generate(**self.inputs, **({"max_new_tokens": NEW, "do_sample": False} | options))

    def new(self, **options: Any) -> list[int]:
        """Generated tokens of the first row."""
        return self.generate(**options)[0, self.inputs["input_ids"].shape[1] :].tolist()

    def greedy(self, count: int = NEW, inputs: Mapping[str, Any] | None = None) -> list[int]:
        """The likeliest tokens, each by a whole forward without a cache, up to the end of the turn."""
        given = dict(inputs or self.inputs)
        tokens: list[int] = []
        while len(tokens) < count and self.processor.end_id not in tokens:
            tokens.append(int(self.forward(**given).logits[0, -1].argmax()))
            given["input_ids"] = pad(given["input_ids"], (0, 1), value=tokens[-1])
            given["attention_mask"] = pad(given["attention_mask"], (0, 1), value=1)
            given["image_counts"] = pad(given["image_counts"], (0, 1))
        return tokens

    def pipe(self, *args: Any, **options: Any) -> Any:
        made: Any = pipeline("image-text-to-text", model=self.model, processor=self.processor)  # pyright: ignore
        return made(*args, **({"max_new_tokens": NEW} | options))

    def text(self, tokens: list[int]) -> str:
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
