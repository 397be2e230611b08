"""The table of docs/transformers.md: each row's claim is tried, and each row has a case here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from casa_core.errors import CasaError
from tests.support.core import hf_cases as cases
from tests.support.core.engine import picture, png
from tests.support.core.hf_cases import generate_refused, prompt_refused
from tests.support.core.hf_model import HfModel, ask, write_folder
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
DOCUMENT = ROOT / "docs" / "transformers.md"
HEADER = "| feature | state | how, or why not |"


def table() -> dict[str, str]:
    """Feature → state, of each row."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for line in lines[lines.index(HEADER) + 2 :]:
        if not line.startswith("|"):
            break
        feature, state, _ = (cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))
        assert feature not in found, f"{feature} stands twice"
        found[feature] = state
    return found


WORKS: dict[str, Callable[..., bool]] = {
    "`AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`, `AutoProcessor`": cases.auto_classes,
    "`AutoTokenizer`": cases.tokenizer,
    "`save_pretrained`, sharded or whole": cases.saved,
    "`dtype=`, `model.to(…)`": cases.cast,
    "`device_map` with one device, host and disk": cases.disk,
    "`attn_implementation`: `eager`, `sdpa`": cases.attention,
    "`resize_token_embeddings`": cases.resized,
    "gradient checkpointing": cases.checkpointed,
    "`torch.compile`": cases.compiled,
    "pictures in messages: `image`, `url`, `path`, `base64`, `image_url`": cases.spellings,
    "`images=` of the processor": cases.given_apart,
    "`add_generation_prompt`": cases.prompted,
    '`padding=True`, `False`, `"longest"`': cases.padded,
    "`return_assistant_tokens_mask`": cases.answer_mask,
    "`batch_decode`, `post_process_image_text_to_text`": cases.decoded,
    "`processor.image_processor`": cases.image_side,
    "`labels`, `num_items_in_batch`": cases.loss,
    "`logits_to_keep`": lambda hf: torch.allclose(
        hf.forward(logits_to_keep=1).logits, hf.forward().logits[:, -1:], atol=1e-5
    ),
    "`return_dict=False`": lambda hf: torch.equal(hf.forward(return_dict=False)[0], hf.forward().logits),
    "`output_hidden_states`": cases.hidden,
    "`inputs_embeds`": cases.embedded,
    "`past_key_values`, `cache`": cases.cached,
    "`generate()`: greedy, `use_cache=False`": cases.greedy,
    "`generate()`: sampling, `num_return_sequences`": cases.sampled,
    "`generate()`: beam search": cases.beams,
    "`generate()`: going on from a returned cache": cases.goes_on,
    "`streamer`": cases.streamed,
    "`stop_strings`": cases.stop_strings,
    "`stopping_criteria`, `max_time`": cases.stopped,
    "`logits_processor`, `prefix_allowed_tokens_fn`": cases.chosen,
    "`bad_words_ids`, `repetition_penalty`, `no_repeat_ngram_size`": cases.no_repeats,
    "`guidance_scale`": cases.guided,
    "`watermarking_config`": cases.watermarked,
    "`output_scores`, `output_logits`": cases.scored,
    '`pipeline("image-text-to-text")` with a chat': cases.chat,
    "`pipeline(images=…, text=…)`": cases.images_and_text,
    "`pipeline(…, batch_size=…)`": cases.batched,
    "`pipeline(…, stop_sequence=…)`": cases.stop_sequence,
    "`pipe.save_pretrained`": cases.pipe_saved,
    "`Trainer`": cases.trained,
}
"""Feature → a case that returns True."""

ONES = torch.ones(1, 4)
UNAVAILABLE = "is not available"
REFUSED: dict[str, tuple[Callable[[HfModel], Any], str]] = {
    "`AutoModelForCausalLM`": (
        lambda hf: AutoModelForCausalLM.from_pretrained(hf.folder),
        "Unrecognized configuration class",
    ),
    "`device_map` over several GPUs": (cases.spread, "shared by all layers"),
    '`attn_implementation="flex_attention"`': (
        lambda hf: cases.loaded(hf, attn_implementation="flex_attention"),
        UNAVAILABLE,
    ),
    "gradient checkpointing, reentrant": (cases.reentrant, "lose the images' gradients"),
    '`{"type": "video"}`': (
        lambda hf: hf.prompt([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}]),
        "which of its frames",
    ),
    '`padding="max_length"`, `pad_to_multiple_of`': (
        prompt_refused({"padding": "max_length"}, {"pad_to_multiple_of": 8}),
        "Padding never reaches",
    ),
    '`padding_side="right"`': (prompt_refused({"padding_side": "right"}), "right end"),
    "`truncation`, `max_length`": (
        prompt_refused({"max_length": 20}, {"processor_kwargs": {"truncation": True}}),
        "A cut could take away",
    ),
    "`tools`, `documents`": (prompt_refused({"tools": [1]}, {"documents": [1]}), "no turn for it"),
    "`chat_template=`": (prompt_refused({"chat_template": "{{ x }}"}), "part of the model"),
    "`continue_final_message`": (prompt_refused({"continue_final_message": True}), "closes every turn"),
    "`tokenize=False`, `return_dict=False`": (
        lambda hf: hf.processor.apply_chat_template(hf.chats[0], tokenize=False),
        "a position among the tokens",
    ),
    '`return_tensors` other than `"pt"`': (
        prompt_refused({"return_tensors": None}, {"return_tensors": "np"}),
        "takes torch tensors",
    ),
    "`do_resize=False`, `size=` and the like": (
        prompt_refused({"do_resize": False}, {"images_kwargs": {"size": {"height": 8}}}),
        "as the model was trained",
    ),
    "`output_hidden_states` with a cache": (
        lambda hf: hf.generate(output_hidden_states=True, return_dict_in_generate=True),
        "last token only",
    ),
    "`inputs_embeds` with a cache, or in `generate()`": (cases.embeds_refused, "in pieces"),
    "`output_attentions`": (lambda hf: hf.forward(output_attentions=True), "never forms that matrix"),
    "`position_ids`": (lambda hf: hf.forward(position_ids=ONES), "Positions follow from"),
    "`head_mask`": (lambda hf: hf.forward(head_mask=ONES), "all heads together"),
    "`token_type_ids`": (lambda hf: hf.forward(token_type_ids=ONES), "Every token is text"),
    "`pixel_values_videos`": (lambda hf: hf.forward(pixel_values_videos=ONES), "an image of its own"),
    "caches of transformers": (
        lambda hf: hf.forward(past_key_values=DynamicCache()),
        "current window's images",
    ),
    "assisted generation, `prompt_lookup_num_tokens`": (
        generate_refused({"assistant_model": torch.nn.Module()}, {"prompt_lookup_num_tokens": 3}),
        "taken out of the window's cache",
    ),
    "`token_healing`": (generate_refused({"token_healing": True}), "images have positions"),
    "`cache_implementation`, `prefill_chunk_size`": (
        generate_refused({"cache_implementation": "static"}, {"prefill_chunk_size": 4}),
        "a cache of its own",
    ),
    "group beams, constrained beams, contrastive search": (cases.hub_modes, "trust_remote_code=True"),
    "`pipeline(images=[…], text=[…])`": (
        lambda hf: hf.pipe(images=[cases.pillow(1), cases.pillow(2)], text=["what", "this"]),
        "Which of the 2 strings",
    ),
    "a chat that ends with the assistant's words": (
        lambda hf: hf.pipe(text=ask(picture(0), "what", answer="a")),
        "closes every turn",
    ),
}
"""Feature → a case that raises, and words of the reason it raises with."""


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> HfModel:
    return HfModel(write_folder(tmp_path_factory.mktemp("features")))


def test_every_row_has_a_case_and_every_case_a_row():
    states = {**dict.fromkeys(WORKS, "works"), **dict.fromkeys(REFUSED, "refused")}
    assert len(states) == len(WORKS) + len(REFUSED)
    assert states == table()


@pytest.mark.parametrize("feature", WORKS)
def test_what_the_table_says_works_does(feature: str, hf: HfModel, request: pytest.FixtureRequest):
    case = WORKS[feature]
    wanted = [name for name in inspect.signature(case).parameters if name != "hf"]
    assert case(hf, **{name: request.getfixturevalue(name) for name in wanted})


@pytest.mark.parametrize("feature", REFUSED)
def test_what_the_table_says_is_refused_is_refused_with_its_reason(feature: str, hf: HfModel):
    case, words = REFUSED[feature]
    with pytest.raises(ValueError, match=words) as refused:
        case(hf)
    theirs = {"`AutoModelForCausalLM`", "group beams, constrained beams, contrastive search"}
    if feature in theirs:
        return
    error: Any = refused.value
    assert isinstance(error, CasaError)
    assert error.what
    assert error.why
    assert error.remedy


def test_an_options_false_or_empty_value_asks_for_nothing(hf: HfModel):
    nothing: dict[str, Any] = {"truncation": False, "tools": [], "documents": None, "max_length": None}
    done = {"do_resize": True, "padding_side": "left", "add_special_tokens": False, "images_kwargs": {}}
    plain, other = (hf.prompt(ask(png(1), "what is this"), **given) for given in ({}, nothing | done))
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)
