"""Streams that are saved at a random frame and go on twice: from the snapshot, and beside it as if nothing
had happened.

Exact: written to a file, read back into an engine of its own, continued; not one token may differ.
Approximate: the transcript alone; what earlier frames left in the text KV is lost. Its sampled continuation
draws the same random numbers as the original, so that a difference is the model's and not the dice's.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import table
from benchmarks.models import Size, film, small_engine
from casa_core.engine.engine import Engine, StreamSession
from casa_core.engine.requests import SamplingParams, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.fusion.config import FusionConfig
from casa_core.weights.checkpoint import MANIFEST, save_checkpoint

QUERY = "describe what you see live"  # as the quickstart's clips are asked for
WORDS, EARLIEST = 8, 2
SIZE = Size(hidden=96, layers=3, side=64, spread=0.25)


@dataclass(frozen=True, slots=True)
class Continued:
    """One stream's restores: what was said about each frame after them, in tokens.

    Attributes:
        frame: Frames seen before the save.
        original, exact, approximate: Tokens about each later frame.
        divergence: KL (nats) of the approximate from the original distribution of the first word after it.
        change: The same between the original's first words about two neighbouring frames: a yardstick.
        entropy: Nats of the original's distribution.
        file_bytes, transcript_bytes: Sizes of the two snapshots.
    """

    frame: int
    original: list[tuple[int, ...]]
    exact: list[tuple[int, ...]]
    approximate: list[tuple[int, ...]]
    divergence: float
    change: float
    entropy: float
    file_bytes: int
    transcript_bytes: int


def run(streams: int, latest: int, after: int, model: Path | None) -> tuple[dict[str, Any], str]:
    """All streams, greedy and sampled: numbers, and a table for people."""
    with tempfile.TemporaryDirectory() as name:
        folder = model or _random_checkpoint(Path(name) / "model")
        engine, fresh = (Engine.from_pretrained(folder, device="cpu") for _ in range(2))
        found = {
            way: [_one(engine, fresh, way, stream, (latest, after), Path(name)) for stream in range(streams)]
            for way in ("greedy", "sampled")
        }
    summaries = {way: _summary(results) for way, results in found.items()}
    for way, summary in summaries.items():
        assert summary["exact: tokens that differ"] == 0, f"{way}: an exact snapshot did not go on exactly"
    rows = [[name, *(summary[name] for summary in summaries.values())] for name in summaries["greedy"]]
    text = table(["", *summaries], rows) + "\n" + _remarks(model)
    return {"model": "random weights" if model is None else "trained", "summary": summaries}, text


def _random_checkpoint(folder: Path) -> Path:
    engine = small_engine(SIZE, FusionConfig())
    save_checkpoint(folder, engine.model, engine.processor)
    return folder


def _one(
    engine: Engine, fresh: Engine, way: str, number: int, frames: tuple[int, int], folder: Path
) -> Continued:
    latest, after = frames
    rng = np.random.default_rng(number)
    frame = int(rng.integers(EARLIEST, latest + 1))
    sampled = SamplingParams(seed=number, temperature=1.0, top_p=0.95)
    params = sampled if way == "sampled" else SamplingParams()
    pictures = film(engine.processor.max_side, seed=number)
    shown = [next(pictures) for _ in range(frame + after)]
    session = engine.open_session(
        settings=StreamSettings(query=QUERY, max_tokens_per_frame=WORDS, sampling=params, bounds=None)
    )
    with first_words(engine) as before:
        for at, picture in enumerate(shown[:frame]):
            session.push_frame(picture, at / 2)
    saved, path = session.save(), folder / "session.safetensors"
    saved.write(path)
    restored = fresh.restore_session(SavedSession.read(path))
    replayed = _replayed(fresh, saved, params)
    later = shown[frame:]
    with first_words(engine) as original_V:
        original = _continue(session, later)
    exact = _continue(restored, later)
    with first_words(fresh) as approximate_V:
        approximate = _continue(replayed, later)
    return Continued(
        frame,
        original,
        exact,
        approximate,
        divergence=_kl(original_V[0], approximate_V[0]),
        change=_kl(original_V[0], before[-1]),
        entropy=float(-(original_V[0].exp() * original_V[0]).sum()),
        file_bytes=path.stat().st_size,
        transcript_bytes=len(saved.transcript.to_json()),
    )


def _replayed(engine: Engine, saved: SavedSession, params: SamplingParams) -> StreamSession:
    """A session from the transcript, as text, which draws the random numbers that the original would."""
    transcript = Transcript.from_json(saved.transcript.to_json())
    number = engine.replay(transcript, StreamSettings(sampling=params))
    slot = engine.settled(number).slot
    assert slot is not None
    sequence, _ = engine._slots.snapshot(slot)
    engine._slots.restore(slot, sequence, saved.sampler)
    return StreamSession(engine, number)


def _continue(session: StreamSession, pictures: list[Any]) -> list[tuple[int, ...]]:
    return [session.push_frame(picture, at / 2).token_ids for at, picture in enumerate(pictures)]


@contextmanager
def first_words(engine: Engine) -> Iterator[list[torch.Tensor]]:
    """Log-probabilities (V,) in float64 of the first word about each frame, in order."""
    found: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        if keywords.get("images") is not None:
            found.append(output.logits[0, -1].double().log_softmax(-1))

    handle = engine.model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _kl(true_V: torch.Tensor, other_V: torch.Tensor) -> float:
    return float((true_V.exp() * (true_V - other_V)).sum())


def _summary(found: list[Continued]) -> dict[str, Any]:
    differing = [
        [mine != theirs for mine, theirs in zip(one.original, one.approximate, strict=True)] for one in found
    ]
    firsts = [marks.index(True) + 1 for marks in differing if any(marks)]
    wrong = sum(
        sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
        for one in found
        for mine, theirs in zip(one.original, one.exact, strict=True)
    )
    median = lambda values: f"{statistics.median(values):.3g}"  # noqa: E731
    return {
        "streams": len(found),
        "frames after the restore, each": len(found[0].original),
        "tokens said in them": sum(len(words) for one in found for words in one.original),
        "exact: tokens that differ": wrong,
        "exact: snapshot file, kB": f"{np.mean([one.file_bytes for one in found]) / 1e3:.0f}",
        "approximate: transcript, kB": f"{np.mean([one.transcript_bytes for one in found]) / 1e3:.1f}",
        "approximate: streams that never differ": sum(not any(marks) for marks in differing),
        "approximate: frames whose words differ": f"{np.mean(differing):.1%}",
        "approximate: first differing frame, median": median(firsts) if firsts else "none",
        "approximate: KL at the first word, mean nats": f"{np.mean([o.divergence for o in found]):.2e}",
        "approximate: KL at the first word, median nats": f"{median([o.divergence for o in found])}",
        "yardstick: KL between neighbouring frames' first words, mean": (
            f"{np.mean([one.change for one in found]):.2e}"
        ),
        "entropy of the first word, mean nats": f"{np.mean([one.entropy for one in found]):.2f}",
    }


def _remarks(model: Path | None) -> str:
    if model is not None:
        manifest = json.loads((model / MANIFEST).read_text())
        return (
            f"A trained checkpoint ({manifest['parameters']:,} weights, {manifest['provenance']}), shown "
            "clips in the look of\nthose it was trained on.\n"
        )
    return (
        f"RANDOM WEIGHTS, nothing was trained. Weights of standard deviation {SIZE.spread} make the outputs "
        f"of a {SIZE.layers}-layer model of\nwidth {SIZE.hidden} depend visibly on pictures and on earlier "
        "frames; at the usual initial scale every distribution is nearly\nuniform and a restore could not "
        "show. What a trained model's transcript loses is for `--model CHECKPOINT` to say.\nThe yardstick "
        "is what one frame's change of picture does.\n"
    )
