"""What each training worker does. Ray Train starts one of these a process; nothing here needs Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casa_core.checkpoint import save_checkpoint
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing import CasaProcessor
from casa_core.trainability import parameter_groups
from pipelines.storage import local_copy, open_folder
from pipelines.train import zero
from pipelines.train.build import build_model, training_stage
from pipelines.train.checkpoint import Checkpointer
from pipelines.train.loader import LoadedStep, SequenceReader, Share, iterate_steps
from pipelines.train.metrics import MetricsLog, StepMetrics
from pipelines.train.order import StepOrder
from pipelines.train.resume import resume
from pipelines.train.schedule import learning_rate_factor
from pipelines.train.step import accumulate_gradients, update


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything a worker needs to know; plain values, so that it travels to any node.

    Attributes:
        model, train: Those sections of the recipe.
        seed: Of initial weights and data order.
        images: ``False`` trains the blind baseline.
        pack, sources: Input artifacts.
        start: A checkpoint folder to start from; else ``model`` says where weights come from.
        output: Folder all workers can write.
        checkpoints: Folder of this run's checkpoints, local or on S3; by default inside ``output``.
        keep, keep_best: Checkpoints that are kept.
        zero_stage, offload, gradient_checkpointing, sequences_per_forward, threads: How it runs; no part of
            the result.
    """

    model: dict[str, Any]
    train: dict[str, Any]
    seed: int
    images: bool
    pack: str
    sources: dict[str, str]
    output: str
    start: str | None = None
    checkpoints: str = ""
    keep: int = 2
    keep_best: int = 1
    zero_stage: int
    offload: zero.Offload = "none"
    gradient_checkpointing: bool = False
    sequences_per_forward: int | None = None
    threads: int


def train(job: TrainJob, *, rank: int, world_size: int) -> None:
    """Train to the last step, from the newest whole checkpoint if there is one, and export the model."""
    if not torch.cuda.is_available():
        torch.set_num_threads(job.threads)
    with local_copy(open_folder(job.pack) / "tokenizer") as folder:
        processor = CasaProcessor.from_pretrained(folder)
    assert isinstance(processor, CasaProcessor)
    engine = build_engine(job, processor, world_size)
    spec, output = job.train, Path(job.output)
    root = open_folder(job.checkpoints) if job.checkpoints else output / "checkpoints"
    saver = Checkpointer(root, rank=rank, world_size=world_size, keep=job.keep, keep_best=job.keep_best)
    done = resume(engine, root, rank=rank, world_size=world_size)
    log = MetricsLog(output, steps_done=done) if rank == 0 else None
    share = Share(rank=rank, world_size=world_size, sequences_per_forward=job.sequences_per_forward)
    for metrics in run_steps(engine, _steps(job, processor, done, share), job, share):
        if log:
            log.write(metrics)
        saver.check()
        if metrics.step % spec["checkpoint_every"] == 0 or metrics.step == spec["steps"]:
            saver.save(engine, processor, steps_done=metrics.step)
    saver.close()
    if log:
        log.close()
    with zero.full_weights(engine) as module:
        if rank == 0:
            assert isinstance(module, CasaForConditionalGeneration)
            save_checkpoint(output / "model", module, processor, provenance={"steps": spec["steps"]})


def build_engine(job: TrainJob, processor: CasaProcessor, world_size: int) -> Any:
    """The recipe's model, what it trains made trainable, under DeepSpeed."""
    model = build_model(job.model, processor, seed=job.seed, images=job.images, start=job.start)
    groups = parameter_groups(model, training_stage(job.train))
    if job.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return zero.wrap(model, groups, zero_settings(job, world_size))


def zero_settings(job: TrainJob, world_size: int) -> zero.ZeroSettings:
    """How the engine computes and what it shards, from the job."""
    spec = job.train
    return zero.ZeroSettings(
        stage=job.zero_stage,
        world_size=world_size,
        precision=spec.get("precision", "fp32"),
        offload=job.offload,
        betas=tuple(spec.get("adam_betas", (0.9, 0.99))),
        weight_decay=spec["weight_decay"],
        clip_grad_norm=spec["clip_grad_norm"],
    )


def _steps(job: TrainJob, processor: CasaProcessor, start: int, share: Share) -> Iterator[LoadedStep]:
    reader = SequenceReader(
        open_folder(job.pack),
        {name: open_folder(path) for name, path in job.sources.items()},
        processor,
        images=job.images,
    )
    spec = job.train
    order = StepOrder(
        reader.pack.by_kind,
        ratio=tuple(spec["image_video_ratio"]),
        sequences_per_step={"image": spec["sequences_per_step"], "video": spec["videos_per_step"]},
        seed=job.seed,
    )
    return iterate_steps(reader, order, start=start, stop=spec["steps"], share=share)


def run_steps(engine: Any, steps: Iterator[LoadedStep], job: TrainJob, share: Share) -> Iterator[StepMetrics]:
    """Take every step, yielding what it did."""
    while True:
        began = time.perf_counter()
        loaded = next(steps, None)
        if loaded is None:
            return
        waited = time.perf_counter() - began
        seed_step(job.seed, loaded.number, share.rank)
        rates = zero.set_learning_rates(engine, schedule_factor(job.train, loaded.number))
        totals = accumulate_gradients(engine, loaded.batches, share.world_size)
        norm = update(engine)
        yield StepMetrics(
            step=loaded.number + 1,
            kind=loaded.step.kind,
            loss=totals.loss,
            learning_rate=rates.get("new", next(iter(rates.values()))),
            grad_norm=norm,
            text_tokens=totals.text_tokens,
            image_tokens=totals.image_tokens,
            trained_tokens=totals.trained_tokens,
            seconds=time.perf_counter() - began,
            loader_wait_s=waited,
        )


def schedule_factor(train: dict[str, Any], step: int) -> float:
    """The learning rate's factor at a step, from 0, by the recipe's ``train`` section."""
    return learning_rate_factor(
        step, steps=train["steps"], warmup_steps=train["warmup_steps"], decay_steps=train["decay_steps"]
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step are a function of the run's seed: a resumed step draws what it had drawn."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))
