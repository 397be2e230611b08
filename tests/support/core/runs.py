"""Running small models on documents, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.models.helium import HeliumModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from casa_core.batch import collate
from casa_core.model import CasaForConditionalGeneration, CasaOutput
from tests.support.core.layouts import Document, Outline, document, ids_of, sequence
from tests.support.core.models import WIDTH

# Leading text, two consecutive pictures, text between pictures; no picture at all; a picture first and last.
OUTLINES: list[Outline] = [[0, 0, (2, 3), (1, 2), 0, 0, (3, 1), 0], [0, 0, 0], [(2, 2), 0, 0, (1, 1), 0]]


def documents_of(outlines: Sequence[Outline], seed: int = 0) -> list[Document]:
    """Documents of these outlines with random contents."""
    generator = torch.Generator().manual_seed(seed)
    return [document(outline, WIDTH, generator) for outline in outlines]


def masks_of(documents: Sequence[Document], seed: int = 0) -> list[list[bool]]:
    """Random loss masks; a document's last token always counts, its first never: nothing predicts it."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for items in documents:
        coins = torch.rand(len(ids_of(items)), generator=generator) < 0.5
        masks.append([place > 0 and bool(coin) for place, coin in enumerate(coins)])
        masks[-1][-1] = len(coins) > 1
    return masks


def flat(masks: Sequence[Sequence[bool]]) -> list[bool]:
    return list(chain.from_iterable(masks))


def logits_of(model: CasaForConditionalGeneration, documents: Sequence[Document]) -> torch.Tensor:
    """(text tokens, vocabulary) of the documents packed into one sequence."""
    batch = collate([sequence(documents, dtype=model.dtype)])
    inputs: dict[str, Any] = {**batch.inputs(), "loss_mask": None}
    return model(**inputs).logits[0]


def each_documents(logits_TV: torch.Tensor, documents: Sequence[Document]) -> tuple[torch.Tensor, ...]:
    """The logits of each packed document."""
    return logits_TV.split([len(ids_of(items)) for items in documents])


def trained(
    model: CasaForConditionalGeneration, documents: Sequence[Document], masks: Sequence[Sequence[bool]]
) -> CasaOutput:
    """A training forward over the documents packed into one sequence."""
    return model(**collate([sequence(documents, flat(masks), dtype=model.dtype)]).inputs())


def base_of(model: CasaForConditionalGeneration) -> nn.Module:
    """transformers' own language model with the same weights."""
    config = type(model.config.text_config)(**model.config.text_config.to_dict())
    config._attn_implementation = "sdpa"
    base = (HeliumModel if config.model_type == "helium" else Qwen2_5_VLTextModel)(config)
    weights = {
        name.removeprefix("language_model."): value
        for name, value in model.state_dict().items()
        if name.startswith("language_model.") and ".fusion." not in name
    }
    base.load_state_dict(weights, strict=True)
    return base.to(model.dtype).eval()


def base_logits(model: CasaForConditionalGeneration, items: Document) -> torch.Tensor:
    """(text tokens, vocabulary) of transformers' own language model; pictures left out."""
    hidden = base_of(model)(torch.tensor([ids_of(items)]), use_cache=False).last_hidden_state
    return model.lm_head(hidden)[0]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The size of the difference beside that of what was expected."""
    ours, expected = ours.detach().double(), expected.detach().double()
    return float((ours - expected).norm() / expected.norm())


Gradients = Mapping[str, torch.Tensor | None]


def gradients_of(model: nn.Module) -> Gradients:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(ours: Gradients, expected: Gradients, tolerance: float) -> None:
    """Each within ``tolerance`` of its own size; one that should vanish may be noise beside the others: a few
    units of single precision's rounding."""
    assert ours.keys() == expected.keys()
    scale = max(float(grad.norm()) for grad in expected.values() if grad is not None)
    noise = 4 * torch.finfo(torch.float32).eps * scale
    for name, theirs in expected.items():
        mine = ours[name]
        if mine is None or theirs is None:
            assert all(grad is None or not grad.any() for grad in (mine, theirs)), name
            continue
        error = float((mine.double() - theirs.double()).norm())
        assert error <= tolerance * float(theirs.norm()) + noise, name
