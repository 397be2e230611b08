"""``generate()`` through transformers' own loops: every fusion, padded batches, caches that come back."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from casa_core.errors import ConfigError, DataError
from casa_core.generation import CasaCache
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import BACKBONES, FUSIONS, PAD, BackboneKind, small_casa
from tests.support.core.hf_rows import Row, Side, greedy, padded, row, three_rows

NEW = 6


@cache
def model_of(fusion: str, backbone: BackboneKind = "helium") -> CasaForConditionalGeneration:
    return small_casa(backbone, **FUSIONS[fusion])


def generated(model: Any, rows: list[Row], side: Side = "left", **options: Any) -> list[list[int]]:
    """New tokens of each row."""
    inputs = padded(rows, side)
    settings = {"max_new_tokens": NEW, "do_sample": False} | options
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_greedy_tokens_of_a_padded_batch_are_those_of_each_row_alone(fusion: str, backbone: BackboneKind):
    model = model_of(fusion, backbone)
    alone = [greedy(model, one, NEW) for one in three_rows()]
    assert generated(model, three_rows()) == alone


@pytest.mark.parametrize("fusion", ["ca-gated", "casa-replace", "insertion", "qformer"])
def test_without_a_cache_and_with_padding_on_the_right_they_are_the_same(fusion: str):
    model = model_of(fusion)
    expected = generated(model, three_rows())
    assert generated(model, three_rows(), use_cache=False) == expected
    assert generated(model, three_rows(), "right") == expected
    assert generated(model, three_rows(), "right", use_cache=False) == expected


def test_a_single_row_needs_no_mask():
    model, one = model_of("ca"), three_rows()[0]
    inputs = padded([one])
    del inputs["attention_mask"]
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, len(one.ids) :]
    assert tokens.tolist() == greedy(model, one, NEW)


@pytest.mark.parametrize("fusion", ["casa", "insertion"])
def test_sampling_draws_the_same_with_and_without_a_cache(fusion: str):
    def drawn(**options: Any) -> list[list[int]]:
        torch.manual_seed(5)
        return generated(model_of(fusion), three_rows(), do_sample=True, top_k=8, temperature=2.0, **options)

    assert drawn() == drawn(use_cache=False)
    assert drawn() != generated(model_of(fusion), three_rows())


def test_a_row_ends_at_any_of_the_stop_tokens_and_is_filled_with_padding():
    model = model_of("ca")
    free = generated(model, three_rows())
    stops = [free[0][2], free[2][4]]
    expected = []
    for tokens in free:
        end = next((n + 1 for n, token in enumerate(tokens) if token in stops), NEW)
        expected.append(tokens[:end] + [PAD] * (NEW - end))
    width = max(len([t for t in tokens if t != PAD]) for tokens in expected)
    assert generated(model, three_rows(), eos_token_id=stops) == [tokens[:width] for tokens in expected]
    assert expected != free


def test_stop_tokens_and_padding_come_from_the_saved_generation_config(tmp_path: Path):
    model = small_casa()
    free = generated(model, three_rows())
    assert model.generation_config.pad_token_id == PAD  # from the language model's configuration
    model.generation_config.eos_token_id = [free[0][1]]
    model.save_pretrained(tmp_path)
    loaded = cast(Any, CasaForConditionalGeneration.from_pretrained(tmp_path))
    assert (tmp_path / "generation_config.json").is_file()
    assert generated(loaded, three_rows()[:1]) == [free[0][:2]]


class Listener(BaseStreamer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


class Forbid(LogitsProcessor):
    """Never this token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.token] = -torch.inf
        return scores


class AfterTokens(StoppingCriteria):
    """Every row ends at this width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.width)


def test_streamers_logits_processors_and_stopping_criteria_take_part():
    model, one = model_of("ca-before"), three_rows()[0]
    free, listener = greedy(model, one, NEW), Listener()
    assert generated(model, [one], streamer=listener) == [free]
    assert listener.heard == [one.ids, *([token] for token in free)]
    assert listener.ended
    forbidden = generated(model, [one], logits_processor=LogitsProcessorList([Forbid(free[0])]))
    assert free[0] not in forbidden[0]
    width = len(one.ids) + 2
    assert generated(model, [one], stopping_criteria=StoppingCriteriaList([AfterTokens(width)])) == [free[:2]]


@pytest.mark.parametrize("fusion", ["casa", "ca-global", "qformer"])
def test_several_answers_to_a_row_see_that_rows_pictures(fusion: str):
    model, inputs = model_of(fusion), padded(three_rows())
    options = {"max_new_tokens": 2, "do_sample": True, "output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    several = cast(Any, model.generate(**inputs, num_return_sequences=3, **options))
    single = cast(Any, model.generate(**inputs, **options))
    assert len(several.sequences) == 9
    expected = single.logits[0].repeat_interleave(3, dim=0)
    torch.testing.assert_close(several.logits[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("fusion", ["ca", "casa", "casa-replace-global", "insertion", "qformer"])
def test_beam_search_finds_the_same_beams_with_and_without_a_cache(fusion: str, backbone: BackboneKind):
    model = model_of(fusion, backbone)
    options = {"num_beams": 3, "num_return_sequences": 3}
    beams = generated(model, three_rows(), **options)
    assert beams == generated(model, three_rows(), use_cache=False, **options)
    assert beams[::3] != generated(model, three_rows())


def test_a_cache_may_be_passed_by_either_of_its_names():
    model, next_ids = model_of("ca"), torch.tensor([[4], [5], [6]])
    with torch.no_grad():
        first, second = (model(**padded(three_rows()), use_cache=True, logits_to_keep=1) for _ in range(2))
        assert first.past_key_values is first.cache
        assert first.get("past_key_values") is first.get("cache") is first.cache
        by_old_name = model(next_ids, past_key_values=first.cache)
        by_new_name = model(next_ids, cache=second.cache)
    assert by_old_name.cache is first.cache
    assert torch.equal(by_old_name.logits, by_new_name.logits)


def test_reordering_a_cache_moves_whole_rows():
    model = model_of("casa-image-ffn")
    rows = three_rows()
    order, next_ids = [2, 2, 0], torch.tensor([[4], [5], [6]])
    with torch.no_grad():
        state = model(**padded(rows), use_cache=True, logits_to_keep=1).past_key_values
        state.reorder_cache(torch.tensor(order))
        moved = model(next_ids, past_key_values=state).logits[:, -1]
        other = model(**padded([rows[n] for n in order]), use_cache=True, logits_to_keep=1).past_key_values
        expected = model(next_ids, past_key_values=other).logits[:, -1]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fusion", ["ca", "casa-before", "insertion"])
def test_a_conversation_goes_on_from_the_cache_that_came_back(fusion: str):
    model = model_of(fusion)
    first = row(7, {2: [(2, 4)]}, 11)
    options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    answer = cast(Any, model.generate(**padded([first]), **options))
    answered = answer.sequences[0].tolist()
    turn = row(5, {1: [(4, 4)]}, 12)
    whole = Row(
        answered + turn.ids,
        first.positions + [len(answered) + place for place in turn.positions],
        first.grids + turn.grids,
        first.patches + turn.patches,
    )
    expected = greedy(model, whole, NEW)
    onward = cast(Any, model.generate(**padded([whole]), past_key_values=answer.past_key_values, **options))
    assert onward.sequences[0, len(whole.ids) :].tolist() == expected
    assert onward.past_key_values is answer.past_key_values
    assert onward.past_key_values.columns == len(whole.ids) + NEW - 1


def test_rows_that_were_padded_anew_do_not_continue_a_cache():
    model = model_of("ca")
    rows = three_rows()[:2]
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    state = cast(Any, model.generate(**padded(rows), **options)).past_key_values
    longer = [row(14, {}, 21), row(6, {}, 22)]
    with pytest.raises(DataError, match="`attention_mask` shows"):
        model.generate(**padded(longer), past_key_values=state, **options)
    with pytest.raises(DataError, match="1 rows, the cache 2"):
        model(torch.tensor([[1]]), past_key_values=state)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"prefill_chunk_size": 4},
    ],
)
def test_what_the_cache_cannot_do_is_refused_by_name(options: dict[str, Any]):
    model = model_of("ca")
    with pytest.raises(ConfigError, match=next(iter(options))):
        model.generate(**padded(three_rows()), max_new_tokens=2, **options)


def test_an_assistant_model_and_foreign_embeddings_are_refused():
    model, inputs = model_of("ca"), padded(three_rows()[:1])
    with pytest.raises(ConfigError, match="assistant_model"):
        model.generate(**inputs, assistant_model=model, max_new_tokens=2)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2)


def test_a_foreign_cache_is_refused():
    from transformers import DynamicCache

    with pytest.raises(DataError, match="The cache is a DynamicCache"):
        model_of("ca")(torch.tensor([[1, 2]]), past_key_values=DynamicCache())


def test_the_cache_counts_columns_and_never_stores_padding():
    model, inputs = model_of("ca"), padded(three_rows())
    state: CasaCache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    assert state.get_seq_length() == inputs["input_ids"].shape[1]
    assert state.sequences.lengths == [9, 5, 12]
    assert not state.is_compileable
