"""The training loop of one worker, without Ray: from loaded steps to what each of them did."""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from casa_core.flops import Load, step_flops
from casa_core.hardware import peak_tflops
from casa_core.param_groups import TrainingStage
from pipelines.train import zero
from pipelines.train.build import training_stage
from pipelines.train.loader import LoadedStep, MicroBatch, SequenceReader, Share, load_batches
from pipelines.train.loss_guard import Guard
from pipelines.train.metrics import StepMetrics
from pipelines.train.schedule import learning_rate_factor
from pipelines.train.step import StepTotals, accumulate_gradients, measure_loss, update


@dataclass(frozen=True, slots=True)
class TakenStep:
    """What one step did.

    Attributes:
        totals: Of its forwards.
        rates: Learning rates of the update, by the groups' kind.
        norm: Of the gradient, before clipping.
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
    guard: Guard,
    world_size: int,
    sources: Sequence[str],
    stage: TrainingStage,
) -> TakenStep:
    """One step, as training, a dry run and the benchmarks take it.

    Args:
        engine: From :func:`pipelines.train.zero.wrap`.
        batches: This worker's part.
        number, kind: Of the step, from 1.
        factor: Of each group's peak learning rate.
        guard: Stops where a loss or a gradient is no number, before it reaches a weight or right after.
        world_size, sources: As for :func:`pipelines.train.step.accumulate_gradients`.
        stage: What trains.

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
    """Takes steps.

    Attributes:
        engine: From :func:`pipelines.train.zero.wrap`.
        train: That section of the recipe.
        seed: Of the run.
        share: Which part of each step is this worker's.
        reader: The packed data.
        held_out: Kind → sequences that are not trained on, but measured every ``train.evaluate_every`` steps.
    """

    engine: Any
    train: Mapping[str, Any]
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
        """Take every step, yielding what it did.

        Raises:
            TrainingError: If a loss is no number, or jumps.
        """
        guard = Guard(self.train.get("spike_nats", 0), self.share.world_size)
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
                factor=schedule_factor(self.train, loaded.number),
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
        """Of the step's sequences' text and image budgets, the share that is used."""
        budgets = self.reader.budgets.get(loaded.step.kind)
        if budgets is None:
            return None, None
        text, image = (budget * len(loaded.step.sequences) for budget in budgets)
        return totals.text_tokens / text, totals.image_tokens / image

    def _held_out_loss(self, step: int) -> dict[str, float] | None:
        every = self.train.get("evaluate_every", 0)
        if not self.held_out or step % every:
            return None
        return {
            kind: measure_loss(self.engine, self._batches(numbers), self.share.world_size)
            for kind, numbers in self.held_out.items()
        }

    def _batches(self, numbers: Sequence[int]) -> Iterator[MicroBatch]:
        """One sequence a forward, equally many on every worker."""
        one_each = Share(rank=self.share.rank, world_size=self.share.world_size, sequences_per_forward=1)
        return load_batches(self.reader, one_each, numbers)


def schedule_factor(train: Mapping[str, Any], step: int) -> float:
    """The learning rate's factor at a step, from 0, by the recipe's ``train`` section."""
    return learning_rate_factor(
        step, steps=train["steps"], warmup_steps=train["warmup_steps"], decay_steps=train["decay_steps"]
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step are a function of the run's seed: a resumed step draws what it had drawn."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def batch_digest(sequences: Sequence[int]) -> str:
    """Of the global numbers of a step's sequences."""
    return f"{zlib.crc32(np.asarray(sequences, dtype=np.int64).tobytes()):08x}"


def peak_memory_gib() -> float:
    """Of this process's GPU tensors; without a GPU, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
