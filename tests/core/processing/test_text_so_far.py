"""A growing answer is decoded from its end alone, and reads as if all of it had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casa_core.engine.engine import Engine
from casa_core.processing.text_so_far import TextSoFar
from tests.support.core.engine import saying
from tests.support.core.loop import asked


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab é🙂\n \u0301\ufffd日", max_size=30), data=st.data())
@example(text="\ufffd\ufffd日", data=None)
def test_pieces_are_the_whole_text_and_end_at_the_first_stop_string(
    known: Engine, text: str, data: st.DataObject | None
):
    some = st.lists(st.text(alphabet="ab \n🙂", min_size=1, max_size=3), max_size=2)
    stops = [] if data is None else data.draw(some)
    ids = known.processor.tokenizer.encode(text, add_special_tokens=False)
    so_far, shown = TextSoFar(known.processor, stops), ""
    for number, token in enumerate(ids):
        longer = so_far.add(token)
        assert longer.startswith(shown)
        shown = longer
        whole = known.processor.decode_piece(ids[: number + 1]).lstrip()
        if not whole.endswith("\ufffd"):
            ends = [whole.index(stop) for stop in stops if stop in whole]
            assert so_far.stopped == bool(ends)
            if ends:
                assert so_far.settled == shown == whole[: min(ends)]
                return
            assert so_far.settled == whole


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=40))
def test_any_tokens_even_broken_characters_are_shown_once_and_in_order(known: Engine, ids: list[int]):
    so_far, shown = TextSoFar(known.processor), ""
    for token in ids:
        longer = so_far.add(token)
        assert longer.startswith(shown)
        shown = longer
    assert len(so_far.settled) <= len(known.processor.decode_piece(ids)) + len(ids)


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.tokens = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, ids: list[int], **options: Any) -> str:
        self.tokens += len(ids)
        return self.tokenizer.decode(ids, **options)


def test_four_thousand_tokens_are_decoded_a_few_times_each(known: Engine, monkeypatch: pytest.MonkeyPatch):
    ids = known.processor.tokenizer.encode("red circle é 🙂 " * 500, add_special_tokens=False)[:4000]
    counted = Counted(known.processor.tokenizer)
    monkeypatch.setattr(known.processor, "tokenizer", counted)
    so_far = TextSoFar(known.processor, ["never", "\n\n"])
    for token in ids:
        so_far.add(token)
    assert len(ids) > 3000
    assert counted.tokens < 8 * len(ids)


@pytest.mark.parametrize(
    ("stop", "expected", "tokens"), [("d c", "re", 2), ("\n", "red circle", 3), ("circle", "red", 2)]
)
def test_a_stop_string_across_tokens_ends_the_answer_at_once(
    known: Engine, stop: str, expected: str, tokens: int
):
    encode = known.processor.tokenizer.encode
    ids = [*encode("red circle", add_special_tokens=False), *encode("\n", add_special_tokens=False)]
    ids += encode("moves on", add_special_tokens=False)
    request = asked("what", max_new_tokens=40, stop=(stop,))
    with saying(known.model, ids):
        (result,) = known.generate([request])
    with saying(known.model, ids):
        deltas = list(known.stream(request))
    assert (result.text.strip(), result.finish_reason) == (expected, "stop")
    assert "".join(delta.text for delta in deltas) == result.text
    before = known.processor.decode_piece(result.token_ids[:-1])
    assert stop in known.processor.decode_piece(result.token_ids).lstrip()
    assert stop not in before, "it ends with the token that completes the stop string"
    assert tokens
