"""A live stream that is saved, moved to another process, replayed, and run beside others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from casa_core.decoding.bounds import TextBounds
from casa_core.engine.engine import Engine, StreamSession
from casa_core.engine.events import Overloaded
from casa_core.engine.requests import GenerationRequest, SamplingParams, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.engine.settings import EngineSettings
from casa_core.errors import StoreError
from casa_core.types import Image, Sample, Text
from tests.support.core.engine import picture, png
from tests.support.paths import ROOT

SAMPLING = SamplingParams(
    temperature=1.0,
    seed=7,
    repetition_penalty=1.0,
    no_repeat_ngram_size=3,
    no_repeat_window=40,
    stop_bias=1.0,
)
BOUNDS = TextBounds(sinks=8, recent=24, slack=8)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def opened(engine: Engine, bounds: TextBounds | None = None) -> StreamSession:
    settings = StreamSettings(
        query="describe it live", max_tokens_per_frame=6, sampling=SAMPLING, bounds=bounds
    )
    return engine.open_session(settings=settings)


def heard(session: StreamSession, first: int, last: int) -> list[tuple[int, ...]]:
    return [session.push_frame(picture(n), n / 2).token_ids for n in range(first, last)]


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_a_restored_stream_says_what_it_would_have_said(
    engine: Engine, tmp_path: Path, bounds: TextBounds | None
):
    session = opened(engine, bounds)
    before = heard(session, 0, 12)
    session.save().write(tmp_path / "stream.safetensors")
    expected = heard(session, 12, 24)
    assert len({*before, *expected}) > 12, "sampling says different things"
    restored = engine.restore_session(SavedSession.read(tmp_path / "stream.safetensors"))
    assert restored.text_tokens < session.text_tokens or bounds
    assert heard(restored, 12, 24) == expected


def test_another_process_goes_on_with_the_same_words(engine: Engine, tiny_checkpoint: Path, tmp_path: Path):
    session = opened(engine)
    heard(session, 0, 5)
    session.save().write(tmp_path / "stream.safetensors")
    expected = heard(session, 5, 10)
    program = (
        "import json, sys\n"
        "from casa_core.engine.engine import Engine\n"
        "from casa_core.engine.saved_session import SavedSession\n"
        "from tests.support.core.engine import picture\n"
        "engine = Engine.from_pretrained(sys.argv[1], device='cpu')\n"
        "session = engine.restore_session(SavedSession.read(sys.argv[2]))\n"
        "print(json.dumps([session.push_frame(picture(n), n / 2).token_ids for n in range(5, 10)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_checkpoint), str(tmp_path / "stream.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert [tuple(words) for words in json.loads(done.stdout.splitlines()[-1])] == expected


def test_a_replayed_stream_keeps_its_text_and_its_latest_frame(engine: Engine):
    session = engine.open_session("what is it", max_tokens_per_frame=4)
    session.push_frame(picture(0), 0.0)
    transcript = Transcript.from_json(session.transcript().to_json())
    # Only one frame was ever shown, so nothing of it is lost and the replay is exact.
    replayed = engine.replay_session(transcript)
    assert replayed.text_tokens == session.text_tokens
    assert replayed.image_tokens == session.image_tokens > 0
    assert heard(replayed, 1, 6) == heard(session, 1, 6)
    # Earlier frames are lost from a later replay, its text is not.
    later = engine.replay_session(session.transcript())
    assert later.transcript() == session.transcript()
    assert later.kv_tokens == session.kv_tokens


def test_a_bounded_streams_transcript_holds_what_its_memory_holds(engine: Engine):
    session = opened(engine, BOUNDS)
    heard(session, 0, 30)
    assert session.text_tokens == session.kv_tokens <= BOUNDS.limit
    replayed = engine.replay_session(session.transcript())
    assert replayed.text_tokens == session.text_tokens
    assert len(heard(replayed, 30, 40)) == 10


def test_streams_and_answers_in_neighbouring_seats_never_influence_each_other(engine: Engine):
    alone = [heard(opened(engine, BOUNDS), first, first + 8) for first in (0, 100)]
    passing = engine.open_session("noise")
    first, second = opened(engine, BOUNDS), opened(engine, BOUNDS)
    together: list[list[tuple[int, ...]]] = [[], []]
    for n in range(8):
        together[0] += heard(first, n, n + 1)
        if n == 3:
            passing.push_frame(picture(55), 0.0)
            passing.close()  # its slot, before the others', is free again
            passing = engine.open_session("more noise")
        together[1] += heard(second, 100 + n, 101 + n)
        passing.push_frame(picture(60 + n, 16 + 16 * (n % 3), 32), n / 2)
    assert together == alone


def test_a_full_house_says_so(tiny_checkpoint: Path):
    small = Engine.from_pretrained(
        tiny_checkpoint, device="cpu", settings=EngineSettings(slots=2, answer_slots=1)
    )
    session = opened(small)
    with pytest.raises(Overloaded, match="1 live streams are open already") as caught:
        opened(small)
    assert caught.value.retry_after_s > 0
    session.close()
    assert opened(small).push_frame(picture(0), 0.0).token_ids is not None


def test_answers_batched_with_others_are_the_answers_given_alone(engine: Engine):
    def request(n: int) -> GenerationRequest:
        images = tuple(Image(data=png(n + k, 32 + 16 * k, 48)) for k in range(n % 3))
        sample = Sample(
            source="t", sample_id=str(n), parts=(*images, Text(role="user", text="what " * (1 + n)))
        )
        return GenerationRequest(
            sample=sample, sampling=SamplingParams(max_new_tokens=4 + 3 * n, temperature=n % 2, seed=n)
        )

    requests = [request(n) for n in range(6)]
    together = engine.generate(requests)
    assert [result.token_ids for result in together] == [engine.generate([r])[0].token_ids for r in requests]


def test_a_snapshot_of_another_model_is_refused(engine: Engine, tiny_checkpoint: Path):
    saved = opened(engine).save()
    other = Engine.from_pretrained(tiny_checkpoint, device="cpu")
    with torch.no_grad():
        other.model.language_model.norm.weight.mul_(1.01)
    with pytest.raises(StoreError, match="another model") as caught:
        other.restore_session(saved)
    assert "weights differ" in caught.value.why


def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path):
    (tmp_path / "broken").write_bytes(b"not a snapshot")
    with pytest.raises(StoreError, match="cannot be read"):
        SavedSession.read(tmp_path / "broken")
