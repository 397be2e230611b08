"""Streams and answers of every fusion on both backbones: as in one forward, beside others, and restored in
another process."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.config import CasaConfig
from casa_core.decoding.bounds import TextBounds
from casa_core.engine.engine import Engine, StreamSession
from casa_core.engine.inputs import image_chunk, prepare_image
from casa_core.engine.requests import GenerationRequest, SamplingParams, StreamSettings
from casa_core.engine.settings import EngineSettings
from casa_core.errors import DataError
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Part, Sample, Text
from casa_core.weights.checkpoint import save_checkpoint
from tests.support.core.engine import full_logits, picture, png, recorded
from tests.support.core.family import BACKBONES, BackboneKind, small_casa
from tests.support.paths import ROOT

FUSIONS: dict[str, dict[str, Any]] = {
    "ca-shared": {"shared_projections": True, "gate": "adaptive_sigmoid"},
    "ca-before-global": {"placement": "before", "positions": "global"},
    "casa": {"kind": "casa"},
    "casa-image-ffn": {"kind": "casa", "placement": "after", "image_ffn": True},
    "casa-replace": {"kind": "casa", "placement": "replace", "layers": (0, 2)},
    "insertion": {"kind": "insertion"},
    "qformer": {"kind": "qformer", "qformer_queries": 3},
}
SAMPLING = SamplingParams(temperature=1.0, seed=3, repetition_penalty=0.5, stop_bias=1.5)
BOUNDS = TextBounds(sinks=4, recent=32, slack=8)
IN_TURN = list(zip(FUSIONS, cycle(BACKBONES), strict=False))
on_both = pytest.mark.parametrize(("name", "backbone"), list(product(FUSIONS, BACKBONES)))
on_one = pytest.mark.parametrize(("name", "backbone"), IN_TURN)


@cache
def engine_of(name: str, backbone: BackboneKind) -> Engine:
    """A model whose words depend visibly on the pictures and on what was generated."""
    tokenizer = build_tokenizer(["describe it live a red circle what is this"] * 3, 300)
    parts = small_casa(backbone).config
    text: dict[str, Any] = parts.text_config.to_dict() | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CasaConfig(text, parts.vision_config, FusionConfig(**FUSIONS[name]))
    torch.manual_seed(1)
    model = CasaForConditionalGeneration(config)
    return Engine(model, CasaProcessor.for_model(tokenizer, config, template="casa-1", max_side=32))


def opened(engine: Engine, query: str = "describe it live", **options: Any) -> StreamSession:
    settings = StreamSettings(query=query, max_tokens_per_frame=4, sampling=SAMPLING, **options)
    return engine.open_session(settings=settings)


def heard(session: StreamSession, first: int, last: int) -> list[tuple[int, ...]]:
    """Frames of several sizes, some wide and some high."""
    shapes = [(24, 32), (32, 16), (16, 16)]
    return [session.push_frame(picture(n, *shapes[n % 3]), n / 2).token_ids for n in range(first, last)]


@on_both
def test_a_stream_sees_what_one_forward_over_all_of_it_sees(name: str, backbone: BackboneKind):
    engine = engine_of(name, backbone)
    session = opened(engine)
    with recorded(engine.model) as tape:
        generated = heard(session, 0, 6)
    assert len(set(generated)) > 3
    places = [n for n, token in enumerate(tape.ids) if token == engine.processor.image_id]
    shapes = [(24, 32), (32, 16), (16, 16)]
    images = [prepare_image(picture(n, *shapes[n % 3]), engine.processor) for n in range(6)]
    expected = full_logits(engine.model, image_chunk(tape.ids, places, images))
    folded = [end for end, before in zip(tape.ends[1:], tape.ends, strict=False) if end - before > 1]
    assert len(folded) == 5, "each frame but the first is read together with the stop token before it"
    for end, logits_V in zip(tape.ends, tape.logits, strict=True):
        torch.testing.assert_close(logits_V, expected[end - 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "per_frame"), [("casa", 0), ("qformer", 3), ("insertion", 16)])
def test_a_stream_is_told_to_start_anew_only_when_no_frame_fits_any_more(name: str, per_frame: int):
    known = engine_of(name, "helium")
    engine = Engine(known.model, known.processor, EngineSettings(context=60))
    unbounded = StreamSettings(max_tokens_per_frame=4, bounds=None)
    session, held = engine.open_session(settings=unbounded), [0]

    def watch() -> None:
        for n in range(60):
            session.push_frame(picture(n, 32, 32), n / 2)
            held.append(session.kv_tokens)

    with pytest.raises(DataError, match="the model's context of 60 tokens"):
        watch()
    assert max(held) <= 60
    # At most the last word and its end are still to be read, then the frame's tokens, then words.
    needed = 2 + len(engine.processor.frame_prefix_ids) + 1 + per_frame + 4
    assert held[-1] + needed > 60
    assert session.kv_tokens == held[-1]


@on_one
def test_streams_side_by_side_say_what_each_says_alone(name: str, backbone: BackboneKind):
    engine = engine_of(name, backbone)
    queries = ("describe it live", "", "what is this")
    alone = [heard(opened(engine, query), 10 * n, 10 * n + 4) for n, query in enumerate(queries)]
    passing = opened(engine)
    sessions = [opened(engine, query) for query in queries]
    together: list[list[tuple[int, ...]]] = [[] for _ in sessions]
    for frame in range(4):
        for n in ((0, 1, 2), (2, 0, 1))[frame % 2]:
            together[n] += heard(sessions[n], 10 * n + frame, 10 * n + frame + 1)
        if frame == 1:
            heard(passing, 50, 52)
            passing.close()
    assert together == alone
    assert len({tuple(one) for one in alone}) == 3


@on_one
def test_answers_in_a_batch_are_those_given_alone(name: str, backbone: BackboneKind):
    engine = engine_of(name, backbone)

    def request(n: int) -> GenerationRequest:
        pictures: list[Part] = [Image(data=png(n + k, 16 + 16 * k, 32)) for k in range(n % 3)]
        parts = (*pictures, Text(role="user", text="what is " * (1 + n)))
        sample = Sample(source="test", sample_id=str(n), parts=parts)
        return GenerationRequest(sample=sample, sampling=SamplingParams(max_new_tokens=3 + n))

    together = engine.generate([request(n) for n in range(5)])
    alone = [engine.generate([request(n)])[0] for n in range(5)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert len({result.token_ids[:3] for result in alone}) > 2


PROGRAM = """
import json, sys
from casa_core.engine.engine import Engine
from casa_core.engine.saved_session import SavedSession
from tests.core.engine.test_session_fusions import heard
generated = {}
for folder in sys.argv[1:]:
    engine = Engine.from_pretrained(folder + "/model", device="cpu")
    saved = SavedSession.read(folder + "/stream.safetensors")
    generated[folder] = heard(engine.restore_session(saved), 9, 15)
print(json.dumps(generated))
"""


def bounds_of(engine: Engine) -> TextBounds | None:
    """Bounds wherever they can be."""
    fusion = engine.model.config.fusion_settings
    return None if fusion.inserts or fusion.positions == "global" else BOUNDS


@pytest.mark.slow  # test_session_state.py does it with one fusion
def test_in_another_process_a_restored_stream_of_any_fusion_says_what_it_would_have_said(tmp_path: Path):
    expected = {}
    for name, backbone in IN_TURN:
        engine, folder = engine_of(name, backbone), tmp_path / f"{name}-{backbone}"
        save_checkpoint(folder / "model", engine.model, engine.processor)
        session = opened(engine, bounds=bounds_of(engine))
        heard(session, 0, 9)
        session.save().write(folder / "stream.safetensors")
        expected[str(folder)] = heard(session, 9, 15)
        assert len(set(expected[str(folder)])) > 3
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *expected],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    generated = json.loads(done.stdout.splitlines()[-1])
    assert {folder: [tuple(words) for words in frames] for folder, frames in generated.items()} == expected
