"""Pictures are embedded beside the decoding: once each, by size and urgency, in threads that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.engine import admission, image_encoder
from casa_core.engine.admission import LARGE_PIXELS
from casa_core.engine.engine import Engine
from casa_core.engine.events import Failed, FrameRefused
from casa_core.engine.image_encoder import Encoded, ImageEncoder
from casa_core.engine.inputs import frame_chunk
from casa_core.engine.load import Load, TimeShare
from casa_core.engine.requests import CaptionEvent, GenerationResult
from casa_core.errors import MediaError
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked, embedded, fresh, of, until

WIDE, TALL = (24, 32), (32, 16)


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def threaded(known: Engine) -> Iterator[Engine]:
    engine = fresh(known, threads=True)
    yield engine
    engine.close()


def encoder_of(known: Engine, **settings: Any) -> ImageEncoder:
    own = {"cache_tokens": 0, "batch": 8, "threads": False, "load": Load(), "wake": lambda: None} | settings
    return ImageEncoder(known.model, **own)


def encode(
    encoder: ImageEncoder, known: Engine, seed: int, shape: tuple[int, int] = WIDE, *, due: float, live: bool
) -> Future[Encoded]:
    pixels = picture(seed, *shape)
    return encoder.encode(
        lambda: frame_chunk(pixels, known.processor, images_withheld=False), due=due, live=live
    )


def grid(known: Engine, shape: tuple[int, int]) -> tuple[int, int]:
    return known.processor.grid(known.processor.image_size(*shape, frame=True))


def test_threads_give_what_lockstep_gives(known: Engine, threaded: Engine):
    requests = [asked(png(n, 16 + 16 * (n % 2), 32), "what is it " * n, seed=n) for n in range(1, 7)]
    assert threaded.generate(requests) == known.generate(requests)
    heard = []
    for engine in (known, threaded):
        session = engine.open_session("what is it", max_tokens_per_frame=4)
        heard.append([session.push_frame(picture(n), n / 2).token_ids for n in range(4)])
    assert heard[0] == heard[1]


def test_one_size_is_embedded_together_the_most_urgent_first_and_every_fourth_batch_is_for_answers(
    known: Engine,
):
    encoder = encoder_of(known, batch=2)
    for n in range(6):
        encode(encoder, known, n, WIDE, due=10.0 + n, live=True)
    encode(encoder, known, 6, TALL, due=1.0, live=True)
    for n in range(2):
        encode(encoder, known, 10 + n, TALL, due=0.0, live=False)
    with embedded() as calls:
        encoder.run()
    wide, tall = grid(known, WIDE), grid(known, TALL)
    assert calls == [[tall], [wide] * 2, [wide] * 2, [tall] * 2, [wide] * 2]


def test_a_picture_is_embedded_once_in_one_batch_in_flight_and_later(known: Engine):
    encoder = encoder_of(known, cache_tokens=64, batch=1)
    with embedded() as calls:
        same = [encode(encoder, known, 1, due=n, live=True) for n in range(3)]
        encoder.run()
        later = encode(encoder, known, 1, due=0.0, live=False)
        encoder.run()
    assert len(calls) == 1
    features = [done.result().chunk.features_NC[0] for done in [*same, later]]
    assert all(torch.equal(features[0], other) for other in features)
    small = encoder_of(known, cache_tokens=0)
    with embedded() as calls:
        for _ in range(2):
            encode(small, known, 1, due=0.0, live=True)
        small.run()
    assert [len(call) for call in calls] == [1], "one batch asks for it twice"


def test_the_cache_drops_what_was_not_used_for_longest(known: Engine):
    tokens = known.processor.image_size(*WIDE, frame=True).tokens
    encoder = encoder_of(known, cache_tokens=2 * tokens)
    with embedded() as calls:
        for seed in (1, 2, 1, 3, 1, 2):  # 3 drops 2, and 2 then drops 3
            encode(encoder, known, seed, due=0.0, live=True)
            encoder.run()
    assert len(calls) == 4


def test_patches_and_pixels_are_dropped_after_embedding(known: Engine):
    encoder = encoder_of(known)
    done = encode(encoder, known, 1, due=0.0, live=True)
    encoder.run()
    assert done.result().chunk.patches_PE == ()
    assert [len(one) for one in done.result().chunk.features_NC] == list(done.result().chunk.image_tokens)


@pytest.mark.parametrize("threads", [False, True])
def test_a_tower_that_fails_for_a_picture_fails_its_caller_alone(
    known: Engine, threads: bool, monkeypatch: pytest.MonkeyPatch
):
    engine = fresh(known, threads=threads, image_cache_tokens=0)
    expected = known.generate([asked(png(1), "what is it")])[0].token_ids
    original = image_encoder.embed
    bad = frame_chunk(picture(9), known.processor, images_withheld=False).patches_PE[0]

    def embed(images: Any, model: Any, tower: Any) -> Any:
        if any(torch.equal(patches_PE, bad) for patches_PE, _ in images):
            raise RuntimeError("the tower failed")
        return original(images, model, tower)

    monkeypatch.setattr(image_encoder, "embed", embed)
    good, wrong = (engine.submit(asked(png(seed), "what is it")) for seed in (1, 9))
    live = engine.open_stream()
    engine.push_frame(live, picture(9), 0.0)
    events = until(engine, lambda events: len(of(events, good) + of(events, wrong) + of(events, live)) == 4)
    (result,), (failed,) = of(events, good), of(events, wrong)
    assert isinstance(result, GenerationResult)
    assert result.token_ids == expected
    assert isinstance(failed, Failed)
    assert [type(outcome) for outcome in of(events, live)] == [FrameRefused, Failed]
    assert engine._slots.free_slots == engine.settings.slots
    engine.close()


def test_a_frame_that_fails_in_the_middle_of_a_step_is_refused_in_the_next(
    threaded: Engine, monkeypatch: pytest.MonkeyPatch
):
    live = threaded.open_stream()
    until(threaded, lambda _: threaded.stream_state(live).encoding is None)
    threaded.push_frame(live, b"no image", 0.0)
    [frame] = threaded.stream_state(live).waiting
    with pytest.raises(MediaError):
        frame.encoding.result(10)
    with monkeypatch.context() as patch:  # it has failed after the step looked
        patch.setattr(threaded._admission, "collect", lambda: None)
        assert threaded.step() == []
    assert threaded.busy, "so that nobody waits for what is known"
    [refused] = of(threaded.step(), live)
    assert isinstance(refused, FrameRefused)
    threaded.push_frame(live, picture(1), 0.5)
    [caption] = of(until(threaded, lambda events: bool(of(events, live))), live)
    assert isinstance(caption, CaptionEvent)


def test_an_image_whose_conversation_failed_or_was_cancelled_is_not_embedded(known: Engine):
    encoder = encoder_of(known, batch=1)
    cancelled = encode(encoder, known, 1, due=0.0, live=True)
    encode(encoder, known, 2, due=1.0, live=True)
    cancelled.cancel()
    with embedded() as calls:
        encoder.run()
    assert len(calls) == 1


def test_a_cancelled_answer_frees_its_place_while_its_picture_waits(threaded: Engine):
    release = threading.Event()

    def slow() -> Any:
        release.wait(20)
        raise ValueError("nothing to prepare")

    blocked = threaded._encoder.encode(slow, due=0.0, live=False)
    numbers = [threaded.submit(asked(png(n), "what is it")) for n in range(3)]
    threaded.step()
    for number in numbers:
        threaded.cancel(number)
    blocked.cancel()
    release.set()
    assert not threaded._steps.running
    assert threaded.generate([asked(png(1), "what is it")])


def test_frames_do_not_wait_for_the_pictures_of_answers_to_be_prepared(threaded: Engine):
    release = threading.Event()

    def slow() -> Any:
        release.wait(20)
        raise ValueError("too late")

    for _ in range(4):
        threaded._encoder.encode(slow, due=0.0, live=False)
    live = threaded.open_stream()
    threaded.push_frame(live, picture(1), 0.0)
    events = until(threaded, lambda events: bool(of(events, live)))
    release.set()
    assert [type(outcome) for outcome in of(events, live)] == [CaptionEvent]


def test_prompts_do_not_wait_for_pictures_of_many_megapixels(threaded: Engine):
    release = threading.Event()

    def slow() -> Any:
        release.wait(20)
        raise ValueError("too late")

    large = threaded._encoder.encode(slow, due=0.0, live=False, large=True)
    (result,) = threaded.generate([asked(png(1), "what is it")])
    assert result.token_ids
    assert not large.done()
    release.set()


def test_the_memory_of_large_pictures_is_given_back_after_them_and_not_after_small_ones(
    threaded: Engine, monkeypatch: pytest.MonkeyPatch
):
    trimmed: list[str] = []
    monkeypatch.setattr(image_encoder, "trim_heap", lambda: trimmed.append(threading.current_thread().name))
    threaded.generate([asked(png(1), "what is it")])
    assert not trimmed
    request = replace(asked(png(1), "what is it"), pixels=LARGE_PIXELS + 1)
    assert threaded.generate([request])
    threaded._encoder.encode(lambda: None, due=0.0, live=False, large=True).exception(10)  # after the first
    assert trimmed[0].startswith("casa-large")


@pytest.mark.parametrize("threads", [False, True])
def test_answers_to_one_request_share_its_pictures_whichever_of_them_leaves(
    known: Engine, threads: bool, monkeypatch: pytest.MonkeyPatch
):
    prepared = []
    original = admission.prompt_chunk
    go = threading.Event()

    def prompt_chunk(sample: Any, *how: Any, **options: Any) -> Any:
        go.wait(20)
        prepared.append(sample)
        return original(sample, *how, **options)

    monkeypatch.setattr(admission, "prompt_chunk", prompt_chunk)
    engine = fresh(known, threads=threads)
    request, other = asked(png(1), "what is it", seed=1), asked(png(2), "what is it", seed=1)
    numbers = [engine.submit(one) for one in (request, request, other, request)]
    if threads:
        engine.step()
    engine.cancel(numbers[0])
    go.set()
    events = until(engine, lambda events: all(of(events, number) for number in numbers[1:]))
    assert [sample.parts[0].data for sample in prepared] == [png(1), png(2)]
    first, different, last = (of(events, number)[0] for number in numbers[1:])
    assert all(isinstance(result, GenerationResult) for result in (first, different, last))
    assert first == last
    assert not of(events, numbers[0])
    engine.close()


def test_closing_leaves_no_thread_and_nothing_that_waits(known: Engine):
    before = set(threading.enumerate())
    engine = fresh(known, threads=True)
    stream = engine.open_stream()
    for n in range(3):
        engine.push_frame(stream, picture(n), n / 2)
        engine.submit(asked(png(n), "what is it"))
    engine.step()
    engine.close()
    engine.close()
    assert set(threading.enumerate()) <= before
    assert not engine._encoder._waiting
    assert not engine.busy


def test_time_is_counted_by_several_threads_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("casa_core.engine.load.WINDOW_S", 0.0)
    share, errors = TimeShare(), []

    def count() -> None:
        try:
            for _ in range(3000):
                share.add(1.0)
                assert share.count >= 0
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
