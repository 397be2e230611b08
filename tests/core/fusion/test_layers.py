"""What text sees of pictures and of other text, however it is batched and whichever backend computes it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch

from casa_core.batch import collate
from casa_core.errors import ConfigError
from casa_core.fusion.config import FusionConfig
from tests.support.core.fusions import BACKBONES, FUSIONS, model_of
from tests.support.core.layouts import Document, sequence
from tests.support.core.models import BackboneName, exactly_in_float64, sizes_of, small_model, weights_of
from tests.support.core.runs import OUTLINES, documents_of, logits_of, masks_of, trained
from tests.support.naive.fusion import naive_logits

CPU_BACKENDS = ["auto", "padded", "reference"]
KINDS = ["CA ⊕", "CASA ⊕", "CASA replacing", "insertion", "Q-Former"]
REPLACING_ALL = {"kind": "casa", "placement": "replace", "layers": "all"}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", KINDS)
def test_every_backend_gives_what_is_written_token_by_token(name: str, backbone: BackboneName, backend: Any):
    model = exactly_in_float64(small_model(torch.float64, backbone, **FUSIONS[name]))
    model.attention_backend = backend
    documents = documents_of(OUTLINES)
    with torch.no_grad():
        expected = [naive_logits(items, weights_of(model), sizes_of(model)) for items in documents]
        ours = logits_of(model, documents)
    torch.testing.assert_close(ours, torch.cat(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_several_sequences_in_a_batch_are_one_sequence_of_all_their_documents(name: str):
    documents = documents_of(OUTLINES)
    model = model_of(name, "helium", torch.float32)
    apart = collate([sequence(part, dtype=model.dtype) for part in (documents[:1], documents[1:])])
    with torch.no_grad():
        ours = model(**{**apart.inputs(), "loss_mask": None}).logits[0]
        assert torch.equal(ours, logits_of(model, documents))


def test_the_loss_is_the_mean_over_the_answer_tokens_whose_logits_alone_are_computed():
    documents = documents_of(OUTLINES)
    masks = masks_of(documents)
    output = trained(model_of("CA ⊕", "helium", torch.float32), documents, masks)
    assert output.trained_tokens == sum(chain.from_iterable(masks)) == len(output.logits)
    assert output.loss == output.loss_sum / output.trained_tokens


def changed(fusion: dict[str, Any], before: Document, after: Document) -> list[bool]:
    """Which text tokens' logits differ between two documents."""
    model = small_model(torch.float32, **fusion)
    with torch.no_grad():
        return (logits_of(model, [before]) != logits_of(model, [after])).any(dim=1).tolist()


def two_windows(word: int = 1, brightness: float = 0) -> Document:
    """Two words, a picture, two words, another picture, a word."""
    (items,) = documents_of([[0, 0, (3, 1), 0, 0, (1, 2), 0]])
    picture = items[2]
    assert isinstance(picture, torch.Tensor)
    return [word, items[1], picture + brightness, *items[3:]]


@pytest.mark.parametrize("fusion", [{}, {"kind": "casa"}, {"kind": "insertion"}])
def test_a_picture_reaches_its_window_and_through_self_attention_all_that_follows(fusion: dict[str, Any]):
    reached = changed(fusion, two_windows(), two_windows(brightness=1))
    assert reached == [False, False, True, True, True]


def test_where_every_self_attention_is_replaced_a_picture_reaches_its_own_window_only():
    reached = changed(REPLACING_ALL, two_windows(), two_windows(brightness=1))
    assert reached == [False, False, True, True, False]


def test_and_a_word_reaches_no_further_than_the_next_picture():
    assert changed(REPLACING_ALL, two_windows(), two_windows(word=2)) == [True, True, False, False, False]
    assert changed({"kind": "casa"}, two_windows(), two_windows(word=2)) == [True] * 5


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"placement": "replace"}, "text would lose its self-attention"),
        ({**REPLACING_ALL, "gate": "tanh"}, "switch the block's only attention off"),
        ({**REPLACING_ALL, "text_norm": "own"}, "reads the block's norm"),
        ({**REPLACING_ALL, "init": "zero_output"}, "would break the language model"),
        ({"shared_projections": True, "init": "zero_output"}, "would break the language model"),
        ({"gate": "tanh", "init": "zero_output"}, "would have no gradient"),
        ({"kind": "insertion", "gate": "tanh"}, "has no fusion layers"),
        ({"kind": "qformer", "positions": "global"}, "has no fusion layers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_reason(fields: dict[str, Any], why: str):
    with pytest.raises(ConfigError, match=why):
        FusionConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "fused"),
    [
        ({}, (0, 1, 2, 3, 4, 5, 6, 7)),
        ({"kind": "casa", "placement": "replace"}, (3, 7)),
        ({"layers": 3}, (2, 5)),
        ({"layers": "first:2"}, (0, 1)),
        ({"layers": "first_and_last:1"}, (0, 7)),
        ({"layers": (6, 1)}, (1, 6)),
        ({"kind": "insertion"}, ()),
    ],
)
def test_the_layers_a_setting_names(fields: dict[str, Any], fused: tuple[int, ...]):
    assert FusionConfig(**fields).layer_indices(8) == fused
