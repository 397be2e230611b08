"""The training loop of one worker, without Ray: takes loaded steps and yields the metrics of each."""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from casa_core.config import TrainingStage
from casa_core.flops import Load, step_flops
from casa_core.hardware import peak_tflops
from pipelines.recipe.model import Train
from pipelines.train import zero
from pipelines.train.loader import LoadedStep, MicroBatch, SequenceReader, Share, load_batches
from pipelines.train.loss_guard import LossGuard
from pipelines.train.metrics import StepMetrics
from pipelines.train.model_config import training_stage
from pipelines.train.step import StepTotals, accumulate_gradients, measure_loss, update


@dataclass(frozen=True, slots=True)
class TakenStep:
    """The result of one step.

    Attributes:
        totals: Losses and token counts of its forwards.
        rates: Kind of parameter group → learning rate of the update.
        norm: The gradient's norm before clipping.
    """

    totals: StepTotals
    rates: dict[str, float]
    norm: float


def take_step(
    engine: Any,
    batches: Sequence[MicroBatch],
    *,
    number: int,
    kind: str,
    factor: float,
    guard: LossGuard,
    world_size: int,
    sources: Sequence[str],
    stage: TrainingStage,
) -> TakenStep:
    """Take one step: forwards, backwards, checks, update. Training, dry runs and benchmarks share it.

    Args:
        engine: From :func:`pipelines.train.zero.wrap`.
        batches: This worker's part of the step, one per forward.
        number: The step, from 1.
        kind: ``image`` or ``video``.
        factor: Factor on each group's peak learning rate.
        guard: Checks the loss before the update and the gradient's norm after it.
        world_size, sources: As for :func:`pipelines.train.step.accumulate_gradients`.
        stage: What trains: decides the number of operations.

    Raises:
        TrainingError: From the guard.
    """
    rates = zero.set_learning_rates(engine, factor)
    flops = sum(step_flops(engine.module.config, stage, Load.of_batch(micro.batch)) for micro in batches)
    totals = accumulate_gradients(engine, batches, world_size, sources, flops)
    guard.check_loss(number, kind, totals)
    norm = update(engine)
    guard.check_norm(number, norm, totals)
    return TakenStep(totals, rates, norm)


@dataclass(slots=True)
class TrainLoop:
    """Trains on loaded steps.

    Attributes:
        engine: From :func:`pipelines.train.zero.wrap`.
        train: The recipe's section.
        seed: The run's seed.
        share: Which part of each step is this worker's.
        reader: The packed data.
        held_out: Kind → sequences that are not trained on; their loss is measured every
            ``train.evaluate_every`` steps.
    """

    engine: Any
    train: Train
    seed: int
    share: Share
    reader: SequenceReader
    held_out: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _stage: TrainingStage = field(init=False)
    _peak: float | None = field(init=False)

    def __post_init__(self) -> None:
        self._stage = training_stage(self.train)
        self._peak = peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None

    def run(self, steps: Iterator[LoadedStep]) -> Iterator[StepMetrics]:
        """Take every step, yielding its metrics.

        Raises:
            TrainingError: If a loss is not finite, or jumps.
        """
        guard = LossGuard(self.train.spike_nats, self.share.world_size)
        while True:
            began = time.perf_counter()
            loaded = next(steps, None)
            if loaded is None:
                return
            waited = time.perf_counter() - began
            number, kind = loaded.number + 1, loaded.step.kind
            seed_step(self.seed, loaded.number, self.share.rank)
            taken = take_step(
                self.engine,
                loaded.batches,
                number=number,
                kind=kind,
                factor=learning_rate_factor(self.train, loaded.number),
                guard=guard,
                world_size=self.share.world_size,
                sources=self.reader.sources,
                stage=self._stage,
            )
            yield self._metrics(loaded, taken, time.perf_counter() - began, waited)

    def _metrics(
        self,
        loaded: LoadedStep,
        taken: TakenStep,
        seconds: float,
        waited: float,
    ) -> StepMetrics:
        totals, rates = taken.totals, taken.rates
        new = rates.get("new", next(iter(rates.values())))
        text, image = self._fill(loaded, totals)
        tflops = totals.flops / seconds / self.share.world_size / 1e12
        return StepMetrics(
            step=loaded.number + 1,
            kind=loaded.step.kind,
            loss=totals.loss,
            learning_rate=new,
            existing_learning_rate=rates.get("existing"),
            grad_norm=taken.norm,
            text_tokens=totals.text_tokens,
            image_tokens=totals.image_tokens,
            trained_tokens=totals.trained_tokens,
            seconds=seconds,
            loader_wait_s=waited,
            source_losses=totals.source_losses,
            batch=batch_digest(loaded.step.sequences),
            workers=self.share.world_size,
            text_fill=text,
            image_fill=image,
            memory_gib=round(peak_memory_gib(), 3),
            tflops=tflops,
            mfu=tflops / self._peak if self._peak else None,
            held_out_loss=self._held_out_loss(loaded.number + 1),
        )

    def _fill(self, loaded: LoadedStep, totals: StepTotals) -> tuple[float | None, float | None]:
        """Used shares of the text and image budgets of the step's sequences."""
        budgets = self.reader.budgets.get(loaded.step.kind)
        if budgets is None:
            return None, None
        text, image = (budget * len(loaded.step.sequences) for budget in budgets)
        return totals.text_tokens / text, totals.image_tokens / image

    def _held_out_loss(self, step: int) -> dict[str, float] | None:
        if not self.held_out or step % self.train.evaluate_every:
            return None
        return {
            kind: measure_loss(self.engine, self._batches(numbers), self.share.world_size)
            for kind, numbers in self.held_out.items()
        }

    def _batches(self, numbers: Sequence[int]) -> Iterator[MicroBatch]:
        """One sequence per forward, and equally many forwards on every worker."""
        one_each = Share(rank=self.share.rank, world_size=self.share.world_size, sequences_per_forward=1)
        return load_batches(self.reader, one_each, numbers)


def learning_rate_factor(train: Train, step: int) -> float:
    """Factor on the peak learning rate at a step, from 0: linear warm-up, constant, linear decay (B.1).

    The factor reaches 1 at the last of ``train.warmup_steps``. It falls over the run's last
    ``train.decay_steps``, so that the step after the run would be at 0.
    """
    left = train.steps - step
    warm = (step + 1) / train.warmup_steps if step < train.warmup_steps else 1.0
    decay = left / train.decay_steps if left < train.decay_steps else 1.0
    return min(warm, decay)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step and rank, so that a resumed step draws the same random numbers as before."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def batch_digest(sequences: Sequence[int]) -> str:
    """CRC-32 of the global numbers of a step's sequences, in hexadecimal."""
    return f"{zlib.crc32(np.asarray(sequences, dtype=np.int64).tobytes()):08x}"


def peak_memory_gib() -> float:
    """Peak memory of this process's GPU tensors, GiB; without a GPU, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
