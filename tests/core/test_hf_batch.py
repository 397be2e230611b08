"""The forward in transformers' form: padded rows are read as if each stood alone, and bad batches refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from casa_core.batch import collate
from casa_core.errors import CasaError, DataError
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import BACKBONES, FUSIONS, BackboneKind, small_casa
from tests.support.core.hf_rows import Side, logits_alone, padded, row, three_rows


@cache
def model_of(fusion: str, backbone: BackboneKind = "helium") -> CasaForConditionalGeneration:
    return small_casa(backbone, **FUSIONS[fusion])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_padded_rows_have_the_logits_of_each_row_alone(fusion: str, backbone: BackboneKind):
    model = model_of(fusion, backbone)
    alone = [logits_alone(model, one) for one in three_rows()]
    for side in ("left", "right"):
        inputs = padded(three_rows(), side)
        logits = model(**inputs).logits
        for number, expected in enumerate(alone):
            real = inputs["attention_mask"][number].bool()
            torch.testing.assert_close(logits[number, real], expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_padding_holds_the_logits_of_the_last_token_before_it():
    model, inputs = model_of("ca"), padded(three_rows(), "right")
    for options in ({}, {"use_cache": True}):
        logits = model(**inputs, **options).logits
        assert torch.equal(logits[1, 5:], logits[1, 4].expand(7, -1))
    assert not model(**padded(three_rows())).logits[1, :7].any()  # nothing stands before padding on the left


@pytest.mark.parametrize("fusion", ["ca", "casa-image-ffn", "casa-replace", "insertion", "qformer"])
@torch.no_grad()
def test_a_cache_that_reads_columns_piece_by_piece_gives_the_same_logits(fusion: str):
    model, cut = model_of(fusion), 6
    inputs = padded([three_rows()[0], row(8, {}, 2), three_rows()[2]])
    whole = model(**inputs).logits
    at_once = model(**inputs, use_cache=True)
    torch.testing.assert_close(at_once.logits, whole, rtol=0, atol=2e-5)

    patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(dim=1).tolist())
    counts = inputs["image_counts"]
    later = torch.tensor([True, False, True, True])  # rows of 9, 8 and 12 columns, padded on the left
    assert (counts[:, :cut].sum(), counts[:, cut:].sum()) == ((~later).sum(), later.sum())

    def images(chosen: torch.Tensor, columns: slice) -> dict[str, torch.Tensor]:
        named = {"image_grid_thw": inputs["image_grid_thw"][chosen], "image_counts": counts[:, columns]}
        return named | {"pixel_values": torch.cat([patches[n] for n in chosen.nonzero().flatten().tolist()])}

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first, rest = images(~later, slice(0, cut)), images(later, slice(cut, None))
    for shown in (mask, mask[:, cut:]):  # with the columns read before, or without
        read = model(ids[:, :cut], mask[:, :cut], **first, use_cache=True)
        went_on = model(ids[:, cut:], shown, **rest, past_key_values=read.past_key_values)
        torch.testing.assert_close(torch.cat([read.logits, went_on.logits], dim=1), whole, rtol=0, atol=2e-5)
        assert went_on.past_key_values.get_seq_length() == ids.shape[1]


@torch.no_grad()
def test_only_the_wanted_logits_are_computed():
    model, inputs = model_of("casa"), padded(three_rows())
    whole = model(**inputs).logits
    for options in ({}, {"use_cache": True}):
        for keep, columns in ((1, [11]), (3, [9, 10, 11]), (torch.tensor([8, 2]), [8, 2]), (99, range(12))):
            kept = model(**inputs, logits_to_keep=keep, **options).logits
            torch.testing.assert_close(kept, whole[:, list(columns)], rtol=0, atol=2e-5)


def losses_by_hand(model: CasaForConditionalGeneration, ignored: set[tuple[int, int]]) -> torch.Tensor:
    """Negative log-likelihood of each token but the first of its row, and but the ignored (row, token)."""
    losses = []
    for number, one in enumerate(three_rows()):
        scores = log_softmax(logits_alone(model, one).double(), dim=-1)
        losses += [-scores[n - 1, one.ids[n]] for n in range(1, len(one.ids)) if (number, n) not in ignored]
    return torch.stack(losses)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_the_mean_over_labels_and_its_gradients_are_those_of_packed_training(side: Side):
    model = small_casa(**FUSIONS["ca-image-ffn"])
    inputs = padded(three_rows(), side)
    ignored = {(0, 4), (2, 7), (2, 11)}
    labels = inputs["input_ids"].clone()  # padding is left in: it is never predicted anyway
    shift = [3, 7, 0] if side == "left" else [0, 0, 0]
    for number, token in ignored:
        labels[number, shift[number] + token] = -100
    output = model(**inputs, labels=labels)
    expected = losses_by_hand(model, ignored)
    assert len(expected) == 8 + 4 + 11 - 3
    assert output.loss.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    assert output.logits.shape == (3, 12, 50)
    shared = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(40)).loss
    assert shared.item() == pytest.approx(expected.sum().item() / 40, abs=1e-5)

    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    trained = [
        [n > 0 and (number, n) not in ignored for n in range(len(one.ids))]
        for number, one in enumerate(three_rows())
    ]
    packs = [one.packed(mask) for one, mask in zip(three_rows(), trained, strict=True)]
    model(**collate(packs).inputs()).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-5)


def test_a_tuple_is_returned_where_asked_for():
    model, inputs = model_of("ca"), padded(three_rows())
    loss, logits = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert loss.ndim == 0
    assert logits.shape == (3, 12, 50)


@torch.no_grad()
def test_a_batch_without_pictures_needs_no_image_inputs():
    model = model_of("ca")
    rows = [row(4, {}, 1), row(6, {}, 2)]
    logits = model(**padded(rows)).logits
    torch.testing.assert_close(logits[0, 2:], logits_alone(model, rows[0]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_blind_baseline_sees_no_picture_that_is_passed():
    model = small_casa()
    seeing = model(**padded(three_rows())).logits
    model.config.images_withheld = True
    blind = model(**padded(three_rows())).logits
    without = {name: padded(three_rows())[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(blind, model(**without).logits)
    assert not torch.allclose(blind, seeing, atol=1e-2)


@torch.no_grad()
def test_pixels_are_read_in_the_precision_of_the_tower():
    model, inputs = small_casa().to(torch.bfloat16), padded(three_rows())
    assert inputs["pixel_values"].dtype == torch.float32
    inputs_bf16 = inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}
    assert torch.equal(model(**inputs).logits, model(**inputs_bf16).logits)


def changed(**changes: Any) -> dict[str, Any]:
    """The batch of three rows with some inputs replaced; ``None``: left out."""
    inputs = padded(three_rows())
    for name, change in changes.items():
        inputs[name] = change(inputs[name]) if callable(change) else change
    return inputs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "`input_ids` is a NoneType"),
        ({"input_ids": lambda ids: ids[0]}, r"`input_ids` is torch.int64 of shape \(12,\)"),
        ({"input_ids": lambda ids: ids.float()}, r"`input_ids` is torch.float32 of shape \(3, 12\)"),
        ({"attention_mask": lambda mask: mask[:, 1:]}, r"`attention_mask` is of shape \(3, 11\)"),
        (
            {"attention_mask": lambda mask: mask * torch.tensor([[1], [0], [1]])},
            "Row 1 of the batch has no token",
        ),
        ({"image_counts": None}, "came without image_counts"),
        ({"image_grid_thw": None}, "came without image_grid_thw"),
        ({"pixel_values": None}, "came without pixel_values"),
        ({"pixel_values": lambda p: p.mul(9).to(torch.uint8)}, "`pixel_values` is torch.uint8 of shape"),
        ({"pixel_values": lambda p: p[:-1]}, r"`pixel_values` is torch.float32 of shape \(31, 48\)"),
        ({"pixel_values": lambda p: p[:, :-1]}, r"`pixel_values` is torch.float32 of shape \(32, 47\)"),
        ({"image_grid_thw": lambda g: g[:-1]}, r"`image_grid_thw` is torch.int64 of shape \(3, 3\)"),
        ({"image_grid_thw": lambda g: g.float()}, "`image_grid_thw` is torch.float32"),
        ({"image_grid_thw": lambda g: g + torch.tensor([1, 0, 0])}, r"`image_grid_thw\[0\] = \(2, 2, 4\)`"),
        ({"image_grid_thw": lambda g: g + torch.tensor([0, 0, 1])}, r"`image_grid_thw\[0\] = \(1, 2, 5\)`"),
        ({"image_counts": lambda c: c[:2]}, r"`image_counts` is torch.int64 of shape \(2, 12\)"),
        ({"image_counts": lambda c: c[:, :-1]}, r"`image_counts` is torch.int64 of shape \(3, 11\)"),
        ({"image_counts": lambda c: c.float()}, "`image_counts` is torch.float32"),
        ({"image_counts": lambda c: c.roll(-6, 1)}, r"`image_counts\[0, 0\] = 1` does not fit"),
        ({"image_counts": lambda c: -c}, r"`image_counts\[0, 6\] = -1` does not fit"),
        ({"image_counts": lambda c: c * 2}, r"`image_grid_thw` is torch.int64 of shape \(4, 3\)"),
        ({"image_rows": torch.tensor([0])}, "takes no argument 'image_rows'"),
        ({"labels": torch.zeros(3, 4, dtype=torch.long)}, r"Labels of shape \(3, 4\)"),
        ({"labels": torch.zeros(3, 12, dtype=torch.long), "logits_to_keep": 1}, "for 1 columns of logits"),
        ({"labels": torch.zeros(3, 12, dtype=torch.long), "use_cache": True}, "together with a cache"),
        ({"logits_to_keep": -1}, "`logits_to_keep = -1` does"),
        ({"logits_to_keep": torch.tensor([12])}, "`logits_to_keep = tensor"),
        ({"inputs_embeds": torch.zeros(3, 12, 32)}, "Both input_ids and inputs_embeds"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 12, 31)}, r"of shape \(3, 12, 31\)"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 12)}, r"`inputs_embeds` is torch.float32 of"),
        ({"inputs_embeds": torch.zeros(3, 12, 32), "use_cache": True}, "`inputs_embeds` was passed together"),
        ({"output_hidden_states": True, "use_cache": True}, "`output_hidden_states = True` was passed"),
        ({"position_ids": torch.zeros(3, 12)}, "takes no argument 'position_ids'"),
        ({"head_mask": torch.ones(3, 2)}, "takes no argument 'head_mask'"),
        ({"token_type_ids": torch.zeros(3, 12)}, "takes no argument 'token_type_ids'"),
        ({"pixel_values_videos": torch.zeros(4, 48)}, "takes no argument 'pixel_values_videos'"),
        ({"colour": 3}, "takes no argument 'colour'"),
        ({"output_attentions": True}, "takes no argument 'output_attentions'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], words: str):
    with pytest.raises(DataError, match=words) as refused:
        model_of("ca")(**changed(**changes))
    error: CasaError = refused.value
    assert error.why
    assert error.remedy


def test_a_row_without_tokens_is_refused_by_a_cache_too():
    inputs = changed(attention_mask=lambda mask: mask * torch.tensor([[1], [0], [1]]))
    with pytest.raises(DataError, match="Row 1 of the batch has no token"):
        model_of("ca")(**inputs, use_cache=True)
