"""What the engine's proofs share: the model, its floor here, and checks that end in PASS or FAIL."""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image as PILImage

from benchmarks.measure import publish, read_options, table
from benchmarks.models import Size, film, small_engine
from casa_core.decoding.bounds import TextBounds
from casa_core.dtypes import DTYPES
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams, StreamSettings
from casa_core.engine.settings import EngineSettings
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.types import Image, Sample, Text
from casa_core.weights.checkpoint import load_checkpoint

FORCED = SamplingParams(stop_bias=-1e9)
"""Greedy, and the stop tokens are forbidden: captions and answers have the length that is asked for."""
QUERY = "describe what you see live"
QUESTION = "what shape is in the image?"


def read_engine_options(
    description: str | None, arguments: Sequence[str] | None, **options: Any
) -> argparse.Namespace:
    """A proof's own options, and those that say which model runs, on what and how."""
    found = read_options(
        description,
        arguments,
        **options,
        model=("", "a checkpoint folder; by default random weights of the sizes below"),
        device="cpu",
        dtype=("fp32", "fp32 or bf16"),
        compile=("no", "yes, no, or auto: where a compiler is"),
        quantize=("", "int8: the weights of the decoding step"),
        threads=(1, "of torch, in each of the engine's threads"),
        recent=(512, "text tokens that a stream's KV keeps"),
        context=(8192, "text tokens of a prompt with its answer, at most"),
        hidden=96,
        layers=3,
        side=(64, "of a frame, pixels"),
    )
    torch.set_num_threads(found.threads)
    return found


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, and how its engines decode.

    Attributes:
        trained: It was loaded from a checkpoint.
        decode: Keywords of :class:`casa_core.decoding.decode_step.DecodeStep`.
        recent, context: As in the options.
    """

    model: CasaForConditionalGeneration
    processor: CasaProcessor
    trained: bool
    decode: dict[str, Any]
    recent: int
    context: int

    def engine(self, **settings: Any) -> Engine:
        """A fresh engine of the model; what it compiles is compiled."""
        own = EngineSettings(context=self.context, **settings)
        engine = Engine(self.model, self.processor, own, **self.decode)
        if self.decode["compile"]:
            engine.warm_up()
        return engine

    @property
    def bounds(self) -> TextBounds | None:
        """Bounds of a stream's text KV; ``None`` where the model's cannot be bounded."""
        fusion = self.model.config.fusion_settings
        if fusion.inserts or fusion.positions == "global":
            return None
        return TextBounds(sinks=16, recent=self.recent, slack=max(self.recent // 8, 1))

    def stream(self, words: int, **settings: Any) -> StreamSettings:
        """Settings of a stream whose captions have exactly so many tokens."""
        own = StreamSettings(query=QUERY, max_tokens_per_frame=words, sampling=FORCED, bounds=self.bounds)
        return replace(own, **settings)

    def question(self, picture: bytes, new: int) -> GenerationRequest:
        """A question about a picture, whose answer has exactly so many tokens."""
        parts = (Image(data=picture), Text(role="user", text=QUESTION))
        return GenerationRequest(
            sample=Sample(source="benchmark", sample_id="0", parts=parts),
            sampling=replace(FORCED, max_new_tokens=new),
        )

    @property
    def side(self) -> int:
        """Side of a frame, pixels."""
        return self.processor.max_side

    def describe(self) -> str:
        """The model in a sentence."""
        text = self.model.config.text_config
        weights = sum(p.numel() for p in self.model.parameters())
        kind = "a trained checkpoint" if self.trained else "random weights"
        return (
            f"Model: {kind}, {weights:,} parameters ({self.model.dtype}), {text.num_hidden_layers} layers of "
            f"width {text.hidden_size}, {self.model.config.fusion['kind']}, frames of {self.side} pixels."
        )


def load_subject(options: argparse.Namespace) -> Subject:
    """The model that the options name."""
    if options.model:
        model, processor = load_checkpoint(Path(options.model))
    else:
        size = Size(hidden=options.hidden, layers=options.layers, side=options.side, spread=0.25)
        known = small_engine(size, FusionConfig())
        model, processor = known.model, known.processor
    cast(Any, model).to(device=torch.device(options.device), dtype=DTYPES[options.dtype])
    compiling = {"yes": True, "no": False, "auto": "auto"}[options.compile]
    decode = {"compile": compiling, "quantize": options.quantize or None}
    return Subject(model, processor, bool(options.model), decode, options.recent, options.context)


def encoded_frames(side: int, count: int, seed: int = 0) -> list[bytes]:
    """So many different frames as JPEG files."""
    frames: list[bytes] = []
    for pixels in itertools.islice(film(side, seed), count):
        with io.BytesIO() as file:
            PILImage.fromarray(pixels).save(file, "JPEG", quality=85)
            frames.append(file.getvalue())
    return frames


def unseen_frames(subject: Subject, engine: Engine) -> Iterator[bytes]:
    """Endless frames of which none is in the engine's image cache any more when it comes again."""
    tokens = subject.processor.image_size(subject.side, subject.side).tokens
    count = 2 * engine.settings.image_cache_tokens // tokens + 64
    return itertools.cycle(encoded_frames(subject.side, count))


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Floor:
    """What one step of decoding cannot be faster than: its weights have to be read.

    Attributes:
        bytes: The language model's weights.
        seconds: In which a matrix-vector product of this size reads them, median.
    """

    bytes: int
    seconds: float


@torch.inference_mode()
def measure_floor(subject: Subject) -> Floor:
    """The floor of one token on this machine."""
    model = subject.model
    embedding, head = model.language_model.embed_tokens.weight, model.lm_head.weight
    read = [p for p in model.language_model.parameters() if p is not embedding]
    count = sum(p.numel() for p in [*read, head])
    size = 1 if subject.decode["quantize"] == "int8" else head.element_size()
    rows = max(count * size // (1024 * head.element_size()), 1)
    matrix = torch.ones(rows, 1024, dtype=head.dtype, device=head.device)
    vector = torch.ones(1024, dtype=head.dtype, device=head.device)
    taken = [_seconds(lambda: torch.mv(matrix, vector), head.device) for _ in range(50)]
    return Floor(count * size, statistics.median(taken[10:]))


def _seconds(command: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    began = time.perf_counter()
    command()
    wait_for(device)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        claim: What, as a sentence.
        found: What was found.
    """

    claim: str
    holds: bool
    found: str


def conclude(
    name: str,
    title: str,
    options: argparse.Namespace,
    payload: Mapping[str, Any],
    text: str,
    checks: Sequence[Check],
) -> int:
    """Publish the result with its checks; the exit status, 0 where all hold."""
    passed = all(check.holds for check in checks)
    verdict = "PASS" if passed else "FAIL"
    rows = [[check.claim, check.found, "yes" if check.holds else "NO"] for check in checks]
    page = f"{text}\n{table(['must hold', 'found', 'holds'], rows)}\n{verdict}\n"
    listed = [{"claim": c.claim, "found": c.found, "holds": c.holds} for c in checks]
    publish(
        f"engine_{name}",
        title,
        options,
        {**payload, "checks": listed, "verdict": verdict},
        page,
        f"engine.{name}",
    )
    return 0 if passed else 1


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds of three digits."""
    return f"{seconds * 1e3:.3g}"
