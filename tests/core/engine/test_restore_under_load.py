"""A stream saved beside others goes on in another process, beside others there, as if it had stayed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from casa_core.engine.engine import Engine
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    StreamSettings,
)
from casa_core.engine.saved_session import SavedSession
from casa_core.engine.settings import EngineSettings
from casa_core.types import Image, Sample, Text
from casa_core.weights.checkpoint import save_checkpoint
from tests.core.engine.test_session_fusions import IN_TURN, SAMPLING, bounds_of, engine_of
from tests.support.core.engine import picture, png
from tests.support.paths import ROOT

SETTINGS = EngineSettings(slots=8, answer_slots=3, prefill_tokens=48, image_cache_tokens=64, threads=True)
BEFORE, AFTER = 30, 200
"""Frames before the save, and tokens after it."""


class Loaded:
    """An engine whose other slots are never idle: four streams and some answers, all of random content.

    Args:
        seed: Of what the others do.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.chance = engine, random.Random(seed)
        settings = StreamSettings(max_tokens_per_frame=3, sampling=SamplingParams(temperature=1.0, seed=seed))
        self.streams = [engine.open_stream(settings) for _ in range(4)]
        self.pushed = dict.fromkeys(self.streams, 0)
        self.answers: set[int] = set()
        self.finished = self.said = 0

    def step(self, watched: int) -> list[CaptionEvent]:
        """Advance everything; what the watched stream said."""
        engine, chance = self.engine, self.chance
        for number in self.streams:
            if chance.random() < 0.5:
                self.pushed[number] += 1
                engine.push_frame(number, picture(chance.randrange(99), 32, 16), self.pushed[number] / 2)
        while len(self.answers) < 3:
            words = Text(role="user", text="what is this red circle " * chance.randint(1, 6))
            parts = (Image(data=png(chance.randrange(9), 16, 32)), words)
            sampling = SamplingParams(max_new_tokens=chance.randint(2, 9))
            sample = Sample(source="test", sample_id="1", parts=parts)
            self.answers.add(engine.submit(GenerationRequest(sample=sample, sampling=sampling)))
        heard: list[CaptionEvent] = []
        for event in engine.step():
            if isinstance(event.outcome, GenerationResult):
                self.answers.remove(event.sequence)
                self.finished += 1
            elif isinstance(event.outcome, CaptionEvent):
                if event.sequence == watched:
                    heard.append(event.outcome)
                else:
                    self.said += 1
        return heard

    def caption(self, number: int, frame: int) -> tuple[int, ...]:
        """The watched stream's words about its next frame."""
        shapes = [(24, 32), (32, 16), (16, 16)]
        self.engine.push_frame(number, picture(frame, *shapes[frame % 3]), frame / 2)
        while not (heard := self.step(number)):
            self.engine.wait(0.01)
        return heard[0].token_ids

    def next_tokens(self, number: int) -> list[int]:
        """So many further tokens of the watched stream."""
        tokens: list[int] = []
        frame = BEFORE
        while len(tokens) < AFTER:
            tokens += self.caption(number, frame)
            frame += 1
        assert self.finished > 10, "answers came and went"
        assert self.said > 10, "and other streams were captioned"
        return tokens[:AFTER]


PROGRAM = """
import json, sys
from casa_core.engine.engine import Engine
from casa_core.engine.saved_session import SavedSession
from tests.core.engine.test_restore_under_load import SETTINGS, Loaded
tokens = {}
for folder in sys.argv[1:]:
    engine = Engine.from_pretrained(folder + "/model", device="cpu", settings=SETTINGS)
    loaded = Loaded(engine, seed=2)
    number = engine.restore(SavedSession.read(folder + "/stream.safetensors"))
    tokens[folder] = loaded.next_tokens(number)
    engine.close()
print(json.dumps(tokens))
"""


@pytest.mark.slow
def test_under_load_a_restored_stream_of_any_fusion_says_the_next_two_hundred_tokens_it_would_have_said(
    tmp_path: Path,
):
    expected: dict[str, list[int]] = {}
    for name, backbone in IN_TURN:
        known, folder = engine_of(name, backbone), tmp_path / f"{name}-{backbone}"
        save_checkpoint(folder / "model", known.model, known.processor)
        engine = Engine(known.model, known.processor, SETTINGS)
        settings = StreamSettings(
            query="describe it live", max_tokens_per_frame=4, sampling=SAMPLING, bounds=bounds_of(engine)
        )
        loaded, number = Loaded(engine, seed=1), engine.open_stream(settings)
        for frame in range(BEFORE):
            loaded.caption(number, frame)
        engine.save(number).write(folder / "stream.safetensors")
        assert SavedSession.read(folder / "stream.safetensors").transcript.ids
        expected[str(folder)] = loaded.next_tokens(number)
        engine.close()
        assert len(set(expected[str(folder)])) > 3
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *expected], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout.splitlines()[-1]) == expected
