"""A stream that is saved, or written down, at any step boundary of its life goes on as if it had not been."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from casa_core.decoding.bounds import TextBounds
from casa_core.engine.engine import Engine
from casa_core.engine.requests import CaptionEvent, SamplingParams, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked, fresh

BOUNDS = TextBounds(sinks=8, recent=40, slack=8)
SAMPLING = SamplingParams(temperature=1.0, seed=5, repetition_penalty=0.5, stop_bias=0.5)


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def settings(bounds: TextBounds | None, sampling: SamplingParams = SAMPLING) -> StreamSettings:
    return StreamSettings(
        query="what is it",
        max_tokens_per_frame=5,
        max_tokens_per_prompt=4,
        sampling=sampling,
        bounds=bounds,
    )


ASKED = [
    (0, "frame"),
    (0, "frame"),
    (4, "what is it"),
    (8, "frame"),
    (10, "is it"),
    (10, "what"),
    (11, "frame"),
    (20, "frame"),
    (20, "frame"),
    (24, "live"),
]
"""What is asked of a stream, each once it has said so many tokens or has nothing to say."""

Heard = tuple[Any, ...]


@dataclass
class Life:
    """One stream of a small engine that others keep busy, and what it says."""

    engine: Engine
    number: int
    said: list[Heard] = field(default_factory=list)
    asked: int = 0

    def run(self, steps: int | None = None) -> list[Heard]:
        """Step so often, or to the end."""
        while steps != 0 and (not self.quiet or self.asked < len(ASKED)):
            self.ask()
            self.take(self.engine.step())
            steps = steps and steps - 1
        return self.said

    def ask(self) -> None:
        stream = self.engine.stream_state(self.number)
        tokens = sum(len(caption[1]) for caption in self.said) + len(stream.words)
        while self.asked < len(ASKED) and (ASKED[self.asked][0] <= tokens or self.quiet):
            _, what = ASKED[self.asked]
            if what == "frame":
                self.engine.push_frame(self.number, picture(self.asked), float(self.asked))
            else:
                self.engine.prompt(self.number, what)
            self.asked += 1
        self.take(self.engine.take_events())

    @property
    def quiet(self) -> bool:
        stream = self.engine.stream_state(self.number)
        return not (stream.words or stream.waiting or stream.prompts)

    def take(self, events: list[Any]) -> None:
        for event in events:
            if event.sequence == self.number:
                caption = event.outcome
                assert isinstance(caption, CaptionEvent), caption
                numbers = (caption.text_tokens, caption.truncated, caption.prompt)
                self.said.append((caption.timestamp, caption.token_ids, *numbers))


def begun(known: Engine, own: StreamSettings) -> Life:
    """A stream that waits a few steps for its slot: answers have all of them."""
    engine = fresh(known, slots=2, answer_slots=0, prefill_tokens=4, queued_frames=9)
    for n in range(2):
        engine.submit(asked("what is it", max_new_tokens=2 + n, stop_bias=-100.0))
    engine.step()
    return Life(engine, engine.open_stream(own))


@pytest.mark.parametrize(
    ("bounds", "every"), [(None, 5), (BOUNDS, 4), pytest.param(BOUNDS, 1, marks=pytest.mark.slow)]
)
def test_a_stream_saved_at_any_step_says_and_counts_what_it_would_have(
    known: Engine, bounds: TextBounds | None, every: int, tmp_path: Path
):
    expected = begun(known, settings(bounds)).run()
    prompts = [caption[4] for caption in expected]
    assert [prompt for prompt in prompts if prompt] == ["what is it", "is it", "what", "live"]
    assert prompts.count(None) == 6
    assert any(caption[3] and len(caption[1]) < 4 for caption in expected), "one was interrupted"
    stages = set()
    for steps in range(0, 200, every):
        life = begun(known, settings(bounds))
        life.run(steps)
        if life.asked == len(ASKED) and life.quiet:
            break
        stages |= stage(life)
        saved = life.engine.save(life.number)
        life.take(life.engine.take_events())
        saved.write(tmp_path / "saved")
        other = fresh(known, slots=2, prefill_tokens=4, queued_frames=9)
        if steps % 3 == 0:
            other.submit(asked("what is it", png(1)))
        number = other.restore(SavedSession.read(tmp_path / "saved"))
        assert Life(other, number, life.said, life.asked).run() == expected
    assert not bounds or stages == {
        "no slot",
        "reading",
        "in a caption",
        "frames wait",
        "prompts wait",
        "quiet",
    }


def stage(life: Life) -> set[str]:
    stream = life.engine.stream_state(life.number)
    now = {
        "no slot": stream.slot is None,
        "reading": stream.slot is not None and stream.prompt is not None,
        "in a caption": bool(stream.words),
        "frames wait": bool(stream.waiting),
        "prompts wait": bool(stream.prompts),
        "quiet": life.quiet,
    }
    return {name for name, is_so in now.items() if is_so}


def test_a_transcript_of_any_step_is_read_again_to_the_same_state(known: Engine):
    for steps in (0, 1, 2, 3, 4, 6, 9, 13, 18, 24, 31, 40):
        life = begun(known, settings(BOUNDS))
        life.run(steps)
        transcript = life.engine.transcript(life.number)
        assert Transcript.from_json(transcript.to_json()) == transcript
        other = fresh(known, slots=4, prefill_tokens=4, queued_frames=9, threads=steps % 3 == 0)
        assert other.stream_state(other.replay(transcript)).transcript() == transcript
        # A step that reads it would go on with what waits.
        read = replace(transcript, waiting=(), prompts=(), words=(), answering=False)
        number = other.replay(read)
        assert other.transcript(number) == read
        assert other.kv_tokens(number) == len(read.ids)
        assert (other.image_tokens(number) > 0) == (read.frame is not None)
        other.close()


def test_a_replay_of_a_stream_with_one_frame_goes_on_with_the_same_words_at_every_step(known: Engine):
    lives = []
    for moved_at in (None, *range(1, 12)):
        life = begun(known, settings(None, SamplingParams()))
        life.engine.settled(life.number)
        life.engine.push_frame(life.number, picture(0), 0.0)
        life.asked = len(ASKED)
        for step in range(12):
            if step == moved_at:
                transcript = life.engine.transcript(life.number)
                life.engine = fresh(known, slots=2, prefill_tokens=4, threads=step % 2 == 0)
                life.number = life.engine.replay(transcript)
                if step % 4:
                    life.engine.settled(life.number)
            if step == 7:
                life.engine.prompt(life.number, "is it")
            life.take(life.engine.step())
        lives.append(life.run())
        life.engine.close()
    assert len(lives[0]) == 2
    assert [[caption[1:] for caption in said] for said in lives] == [[c[1:] for c in lives[0]]] * len(lives)


def test_words_of_a_replayed_stream_wait_for_its_text_however_long_it_is_prepared(known: Engine):
    life = begun(known, settings(None, SamplingParams(stop_bias=-100.0)))
    life.engine.settled(life.number)
    life.engine.push_frame(life.number, picture(0), 0.0)
    while len(life.engine.stream_state(life.number).words) < 3:
        life.take(life.engine.step())
    transcript = life.engine.transcript(life.number)
    life.asked = len(ASKED)
    expected = life.run()
    engine = fresh(known, threads=True)
    release = threading.Event()
    for _ in range(2):
        engine._encoder.encode(partial(waiting, release), due=0.0, live=True)
    moved = Life(engine, engine.replay(transcript))
    for _ in range(5):
        moved.take(engine.step())
    assert engine.stream_state(moved.number).words == list(transcript.words)
    release.set()
    engine.settled(moved.number)
    moved.asked = len(ASKED)
    assert moved.run() == expected
    engine.close()


def waiting(release: Any) -> Any:
    release.wait(20)
    raise ValueError("nothing to prepare")


def test_frames_that_wait_are_read_in_their_order_elsewhere(known: Engine):
    engine = fresh(known, slots=2, queued_frames=9)
    number = engine.open_stream(settings(None))
    for n in range(5):
        engine.push_frame(number, picture(n), float(n))
    engine.step()
    engine.prompt(number, "what")
    saved = engine.save(number)
    other = fresh(known, slots=2, queued_frames=2)
    moved = Life(other, other.restore(saved), asked=len(ASKED))
    dues = [frame.due for frame in other.stream_state(moved.number).waiting]
    assert dues == sorted(dues)
    assert [caption[0] for caption in moved.run() if caption[4] is None][-4:] == [1.0, 2.0, 3.0, 4.0]


def test_the_latest_frame_keeps_its_place_when_text_is_dropped_after_it(known: Engine):
    bounds = TextBounds(sinks=16, recent=24, slack=4)
    engine = fresh(known)
    number = engine.open_stream(StreamSettings(bounds=bounds, max_tokens_per_prompt=12))
    engine.push_frame(number, picture(0), 0.0)
    stream = engine.stream_state(number)
    while stream.words or stream.waiting:
        engine.step()
    place, token = stream.frame_at, stream.ids[stream.frame_at]
    assert place < bounds.sinks
    for _ in range(8):
        engine.prompt(number, "what is it")
        while stream.prompts:
            engine.step()
    assert engine._slots.state(stream.slot or 0).dropped > 0
    assert (stream.frame_at, stream.ids[stream.frame_at]) == (place, token)
