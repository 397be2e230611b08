"""A small case for each feature of transformers: one that works returns True, one that is refused raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from torch.nn.functional import cross_entropy, pad
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from casa_core.errors import CasaError
from tests.support.core.engine import picture, png
from tests.support.core.hf_model import NEW, HfModel, ask


def auto_classes(hf: HfModel) -> bool:
    names = [type(auto.from_pretrained(hf.folder)).__name__ for auto in (AutoConfig, AutoModel)]
    loaded = [type(hf.model).__name__, type(hf.processor).__name__]
    return [*names, *loaded] == ["CasaConfig", *["CasaForConditionalGeneration"] * 2, "CasaProcessor"]


def tokenizer(hf: HfModel) -> bool:
    ids = AutoTokenizer.from_pretrained(hf.folder)("what is this")["input_ids"]
    return ids == hf.processor.tokenizer("what is this")["input_ids"]


def cast(hf: HfModel) -> bool:
    inputs = hf.inputs
    half = [loaded(hf, dtype=torch.bfloat16), loaded(hf).to(torch.bfloat16)]
    with torch.no_grad():
        logits = [model(**inputs).logits for model in half]
    return logits[0].dtype == torch.bfloat16 and torch.equal(*logits)


def loaded(hf: HfModel, folder: Path | None = None, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder or hf.folder, **options)


def saved(hf: HfModel, tmp_path: Path) -> bool:
    hf.model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = loaded(hf, tmp_path).state_dict()
    return all(torch.equal(again[name], value) for name, value in hf.model.state_dict().items())


def disk(hf: HfModel, tmp_path: Path) -> bool:
    places = {name: "cpu" for name, _ in hf.model.named_children()} | {"lm_head": "disk"}
    model = loaded(hf, device_map=places, offload_folder=tmp_path)
    with torch.no_grad():
        return torch.equal(model(**hf.inputs).logits, hf.forward().logits)


def spread(hf: HfModel) -> None:
    model = loaded(hf)
    model.hf_device_map = {"language_model.layers.0": 0, "language_model.layers.1": 1}
    model(**hf.inputs)


def attention(hf: HfModel) -> bool:
    names = ("eager", "sdpa")
    logits = [loaded(hf, attn_implementation=name)(**hf.inputs).logits for name in names]
    return all(torch.allclose(one, hf.forward().logits, atol=1e-4) for one in logits)


def resized(hf: HfModel) -> bool:
    model = loaded(hf)
    old = model.config.text_config.vocab_size
    model.resize_token_embeddings(old + 3)
    return torch.equal(model(**hf.inputs).logits[..., :old], hf.forward().logits)


def gradients(hf: HfModel, checkpointing: bool) -> dict[str, torch.Tensor]:
    model = loaded(hf).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**hf.inputs, labels=hf.inputs["input_ids"]).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def checkpointed(hf: HfModel) -> bool:
    one, other = gradients(hf, True), gradients(hf, False)
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], atol=1e-5) for n in other)


def reentrant(hf: HfModel) -> None:
    loaded(hf).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def compiled(hf: HfModel) -> bool:
    with torch.no_grad():
        logits = torch.compile(copy.deepcopy(hf.model), backend="eager")(**hf.inputs).logits
    torch._dynamo.reset()
    return torch.allclose(logits, hf.forward().logits, atol=1e-5)


def spellings(hf: HfModel, tmp_path: Path) -> bool:
    path = tmp_path / "x.png"
    path.write_bytes(png(1))
    url = {"type": "image_url", "image_url": {"url": f"file://{path}"}}
    parts = [{"type": "image", key: str(path)} for key in ("image", "url", "path")] + [url]
    prompts = [
        hf.prompt([{"role": "user", "content": [p, *ask("what is this")[0]["content"]]}]) for p in parts
    ]
    return all(torch.equal(p["pixel_values"], hf.inputs["pixel_values"]) for p in prompts)


def given_apart(hf: HfModel) -> bool:
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]}]
    made = [hf.processor(bare, images=one) for one in (png(1), [picture(1)], [[png(1)]])]
    return all(torch.equal(one[name], hf.inputs[name]) for one in made for name in hf.inputs)


def prompted(hf: HfModel) -> bool:
    open_ended, closed = (
        hf.processor.apply_chat_template(hf.chats[0], add_generation_prompt=add)["input_ids"][0].tolist()
        for add in (True, False)
    )
    return hf.processor.tokenizer.decode(open_ended[len(closed) :]) == "<|assistant|>"


def padded(hf: HfModel) -> bool:
    made = [hf.prompt(hf.chats, padding=padding) for padding in (True, "longest")]
    masks = [one["attention_mask"] for one in made]
    alone = [hf.prompt(chat, padding=False)["input_ids"].shape[1] for chat in hf.chats]
    return torch.equal(*masks) and masks[0].sum(dim=1).tolist() == alone


def answer_mask(hf: HfModel) -> bool:
    batch = hf.processor.apply_chat_template(hf.chats[2], return_assistant_tokens_mask=True)
    answer = batch["input_ids"][batch["assistant_masks"].bool()]
    return hf.processor.tokenizer.decode(answer) == " a red<|end|>"


def decoded(hf: HfModel) -> bool:
    tokens = [hf.greedy()]
    words = hf.processor.batch_decode(tokens, skip_special_tokens=True)
    return words == hf.processor.post_process_image_text_to_text(tokens) == [hf.text(tokens[0])]


def image_side(hf: HfModel) -> bool:
    return torch.equal(hf.processor.image_processor(png(1))["pixel_values"], hf.inputs["pixel_values"])


def loss(hf: HfModel) -> bool:
    labels = hf.inputs["input_ids"].clone()
    labels[0, 3] = -100
    output = hf.forward(labels=labels)
    expected = cross_entropy(output.logits[0, :-1], labels[0, 1:], reduction="sum")
    whole = hf.forward(labels=labels, num_items_in_batch=10).loss * 10
    mean = output.loss * (labels[0, 1:] != -100).sum()
    return torch.allclose(mean, expected, rtol=1e-4) and torch.allclose(whole, expected, rtol=1e-4)


def hidden(hf: HfModel) -> bool:
    output = hf.forward(output_hidden_states=True)
    embedded = hf.model.get_input_embeddings()(hf.inputs["input_ids"])
    last = hf.model.get_output_embeddings()(output.hidden_states[-1])
    return torch.equal(output.hidden_states[0], embedded) and torch.equal(last, output.logits)


def embedded(hf: HfModel) -> bool:
    values = hf.model.get_input_embeddings()(hf.inputs["input_ids"])
    return torch.equal(hf.forward(input_ids=None, inputs_embeds=values).logits, hf.forward().logits)


def embeds_refused(hf: HfModel) -> None:
    values = torch.zeros(1, 3, hf.model.config.text_config.hidden_size)
    with pytest.raises(CasaError, match="together with a cache"):
        hf.forward(input_ids=None, inputs_embeds=values, use_cache=True)
    hf.generate(inputs_embeds=values)


def cached(hf: HfModel) -> bool:
    next_ids = torch.tensor([[7]])
    longer = torch.cat([hf.inputs["input_ids"], next_ids], dim=1)
    mask, counts = torch.ones_like(longer), pad(hf.inputs["image_counts"], (0, 1))
    expected = hf.forward(input_ids=longer, attention_mask=mask, image_counts=counts).logits[:, -1]
    found = []
    for name in ("cache", "past_key_values"):
        given = {name: hf.forward(use_cache=True).past_key_values}
        found.append(hf.model(next_ids, **given).logits[:, -1])
    return all(torch.allclose(one, expected, atol=1e-4) for one in found)


def greedy(hf: HfModel) -> bool:
    return hf.new() == hf.new(use_cache=False) == hf.greedy()


def sampled(hf: HfModel) -> bool:
    torch.manual_seed(0)
    likely = hf.generate(do_sample=True, top_k=1, num_return_sequences=2).tolist()
    return len(likely) == 2 and likely[0] == likely[1] == hf.generate()[0].tolist()


def beams(hf: HfModel) -> bool:
    several = hf.generate(num_beams=3, num_return_sequences=3)
    return len(several) == 3 and torch.equal(
        several, hf.generate(num_beams=3, num_return_sequences=3, use_cache=False)
    )


def goes_on(hf: HfModel) -> bool:
    first = hf.generate(return_dict_in_generate=True, max_new_tokens=2, eos_token_id=None)
    longer = pad(first.sequences, (0, 2), value=9)
    given = {
        "input_ids": longer,
        "attention_mask": torch.ones_like(longer),
        "image_counts": pad(hf.inputs["image_counts"], (0, 4)),
    }
    inputs = hf.inputs | given
    made = hf.model.generate(
        **inputs, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False
    )
    return made[0, longer.shape[1] :].tolist() == hf.greedy(3, inputs)


def streamed(hf: HfModel) -> bool:
    streamer = TextIteratorStreamer(hf.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    hf.generate(streamer=streamer)
    return "".join(streamer) == hf.text(hf.greedy())


def words_one_by_one(hf: HfModel) -> tuple[list[int], Callable[[int, torch.Tensor], list[int]]]:
    """Tokens of five words, and a function that has ``generate()`` say them."""
    encode = hf.processor.tokenizer.encode
    words = [encode(f" {word}", add_special_tokens=False) for word in ["that", "circle", "and", "what", "is"]]
    tokens = [token for (token,) in words]
    start = hf.inputs["input_ids"].shape[1]
    return tokens, lambda _row, ids: [tokens[len(ids) - start]]


def stop_strings(hf: HfModel) -> bool:
    words, only = words_one_by_one(hf)
    made = hf.new(stop_strings=["ircle"], tokenizer=hf.processor.tokenizer, prefix_allowed_tokens_fn=only)
    return made == words[:2]


def stopped(hf: HfModel) -> bool:
    after_one = [lambda ids, scores, **_: torch.ones(len(ids), dtype=torch.bool)]
    by_criterion = hf.new(stopping_criteria=after_one, eos_token_id=None)
    return by_criterion == hf.new(max_time=0.0, eos_token_id=None) == hf.greedy(1)


def chosen(hf: HfModel) -> bool:
    allowed = hf.new(prefix_allowed_tokens_fn=lambda batch, ids: [8, 9], eos_token_id=None)

    def only(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([8]), 0.0)

    return set(allowed) <= {8, 9} and hf.new(logits_processor=[only]) == [8] * NEW


def no_repeats(hf: HfModel) -> bool:
    first = hf.greedy(1)[0]
    made = hf.new(bad_words_ids=[[first]], repetition_penalty=1.2, no_repeat_ngram_size=1, eos_token_id=None)
    return first not in made and len(set(made)) == len(made)


def guided(hf: HfModel) -> bool:
    made = hf.generate(guidance_scale=1.5, output_scores=True, return_dict_in_generate=True)
    seen = hf.forward().logits[:, -1].log_softmax(dim=-1)
    with torch.no_grad():
        unseen = hf.model(hf.inputs["input_ids"][:, -1:]).logits[:, -1].log_softmax(dim=-1)
    return torch.allclose(made.scores[0], unseen + 1.5 * (seen - unseen), atol=1e-3)


def watermarked(hf: HfModel) -> bool:
    settings = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    made = hf.generate(watermarking_config={"bias": 2.0}, **settings)
    added = (made.scores[0] - made.logits[0]).round(decimals=3).unique().tolist()
    return added == [0.0, 2.0]


def scored(hf: HfModel) -> bool:
    made = hf.generate(output_scores=True, output_logits=True, return_dict_in_generate=True)
    expected = hf.forward().logits[:, -1]
    return all(torch.allclose(one[0], expected, atol=1e-4) for one in (made.scores, made.logits))


def said(answers: Any) -> list[str]:
    """The texts of a pipeline's answers; those of several conversations come in lists of one."""
    flat = [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]
    return [one["generated_text"] for one in flat]


def chat(hf: HfModel) -> bool:
    return said(hf.pipe(text=hf.chats[1], return_full_text=False)) == [hf.text(hf.greedy())]


def images_and_text(hf: HfModel) -> bool:
    made = hf.pipe(images=pillow(1), text="what is this", return_full_text=False)
    return said(made) == [hf.text(hf.greedy())]


def batched(hf: HfModel) -> bool:
    alone = [said(hf.pipe(text=one, return_full_text=False))[0] for one in hf.chats]
    for size in (2, 3):
        assert said(hf.pipe(text=hf.chats, batch_size=size, return_full_text=False)) == alone
    return alone == [hf.text(hf.greedy(inputs=hf.prompt(one))) for one in hf.chats]


def stop_sequence(hf: HfModel) -> bool:
    _, only = words_one_by_one(hf)
    settings = {"stop_sequence": "and", "generate_kwargs": {"prefix_allowed_tokens_fn": only}}
    (answer,) = said(hf.pipe(text=hf.chats[1], return_full_text=False, **settings))
    return answer.split() == ["that", "circle", "and"]


def pipe_saved(hf: HfModel, tmp_path: Path) -> bool:
    make: Any = pipeline
    make("image-text-to-text", model=hf.model, processor=hf.processor).save_pretrained(tmp_path)
    again = make("image-text-to-text", model=str(tmp_path))
    made = again(text=hf.chats[1], return_full_text=False, max_new_tokens=NEW)
    return said(made) == [hf.text(hf.greedy())]


def trained(hf: HfModel, tmp_path: Path) -> bool:
    def collate(conversations: list[Any]) -> dict[str, Any]:
        batch = hf.processor(conversations, add_generation_prompt=False, return_assistant_tokens_mask=True)
        answers = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~answers, -100)}

    taught = [ask(png(n), "what", answer="a red") for n in range(3)] + [ask("this", answer="circle")]
    settings: dict[str, Any] = {"remove_unused_columns": False, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2, **settings
    )
    trainer: Any = Trainer(loaded(hf), arguments, collate, taught, taught)  # pyright: ignore
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return trainer.evaluate()["eval_loss"] < before - 1


def each_refused(*calls: Callable[[], Any]) -> None:
    """All but the last are checked here; the last raises for the test."""
    for call in calls[:-1]:
        with pytest.raises(CasaError, match="is not available"):
            call()
    calls[-1]()


def prompt_refused(*changes: dict[str, Any]) -> Callable[[HfModel], None]:
    return lambda hf: each_refused(*(lambda c=c: hf.prompt(hf.chats[1], **c) for c in changes))


def generate_refused(*changes: dict[str, Any]) -> Callable[[HfModel], None]:
    return lambda hf: each_refused(*(lambda c=c: hf.generate(**c) for c in changes))


def hub_modes(hf: HfModel) -> None:
    """Modes whose code transformers moved to the hub."""
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        hf.generate(num_beams=4, num_beam_groups=2, diversity_penalty=0.1)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        hf.generate(penalty_alpha=0.6, top_k=4)
    hf.generate(force_words_ids=[[5]], num_beams=2)


def pillow(seed: int) -> PILImage.Image:
    return PILImage.fromarray(picture(seed))
