"""What each training worker does, without Ray: load, train, save checkpoints, log, export the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import torch
from torch import nn

from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.storage.host import cached_copy
from pipelines.storage.transfer import local_copy, local_output
from pipelines.storage.uri import open_folder
from pipelines.train import zero
from pipelines.train.build import build_model
from pipelines.train.checkpoint.resume import resume
from pipelines.train.checkpoint.save import Checkpointer
from pipelines.train.loader import LoadedStep, SequenceReader, Share, iterate_steps
from pipelines.train.loop import TrainLoop
from pipelines.train.metrics import MetricsLog
from pipelines.train.model_config import training_stage
from pipelines.train.sampler import StepSampler, hold_out
from pipelines.train.settings import TrainJob
from pipelines.train.snapshots import Snapshots
from pipelines.train.tracking import TrackedRun, Trackers


def train(job: TrainJob, *, rank: int, world_size: int) -> None:
    """Train to the last step, from the newest whole checkpoint if there is one, and export the model."""
    settings, placement = job.settings, job.placement
    if not torch.cuda.is_available():
        torch.set_num_threads(placement.cpus_per_worker)
    with local_copy(open_folder(job.pack) / "tokenizer") as folder:
        processor = CasaProcessor.from_pretrained(folder)
    assert isinstance(processor, CasaProcessor)
    engine = build_engine(job, processor, world_size)
    root = open_folder(job.checkpoints)
    saver = Checkpointer(
        root, rank=rank, world_size=world_size, keep=placement.keep, keep_best=placement.keep_best
    )
    done = resume(engine, root, rank=rank, world_size=world_size)
    share = Share(rank=rank, world_size=world_size, sequences_per_forward=placement.sequences_per_forward)
    reader, steps, held_out = open_loader(job, processor, done, share)
    loop = TrainLoop(engine, settings.train, settings.seed, share, reader, held_out)
    last, snapshots = settings.train.steps, Snapshots(root, open_folder(job.output))
    with ExitStack() as stack:
        logs = [stack.enter_context(closing(log)) for log in _logs(job, done, snapshots)] if rank == 0 else []
        for metrics in loop.run(steps):
            for log in logs:
                log.write(metrics)
            saver.check()
            if settings.scores(metrics.step):
                with zero.full_weights(engine) as module:
                    if rank == 0:
                        snapshots.write(_own(module), processor, metrics.step)
            if metrics.step % settings.train.checkpoint_every == 0 or metrics.step == last:
                losses = metrics.held_out_loss
                mean = sum(losses.values()) / len(losses) if losses else None
                for log in logs:
                    log.flush()
                saver.save(engine, processor, steps_done=metrics.step, metric=mean)
        saver.close()
    with zero.full_weights(engine) as module:
        if rank == 0:
            with local_output(open_folder(job.output) / "model") as folder:
                save_checkpoint(folder, _own(module), processor, provenance={"steps": last})


def _own(module: nn.Module) -> CasaForConditionalGeneration:
    assert isinstance(module, CasaForConditionalGeneration)
    return module


def _logs(job: TrainJob, steps_done: int, snapshots: Snapshots) -> list[MetricsLog | Trackers]:
    """What rank 0 writes every step to."""
    settings = job.settings
    train = settings.train.model_dump(mode="json", exclude={"seed"})
    config = {
        **{f"model.{key}": value for key, value in settings.model.fusion.model_dump(mode="json").items()},
        **{f"train.{key}": value for key, value in train.items()},
        "model.backbone": settings.model.backbone,
        "seed": settings.seed,
    }
    run = TrackedRun(job.run_name, job.run_key, job.track_folder, config)
    return [
        MetricsLog(open_folder(job.output), steps_done=steps_done),
        Trackers(job.placement.track, run, steps_done=steps_done, scores=snapshots.scores),
    ]


def build_engine(job: TrainJob, processor: CasaProcessor, world_size: int) -> Any:
    """The recipe's model under DeepSpeed, with the recipe's parameters trainable."""
    settings = job.settings
    with nullcontext() if job.start is None else cached_copy(job.start, job.start_digest) as start:
        model = build_model(
            settings.model,
            processor,
            seed=settings.seed,
            images=settings.images,
            start=start,
            dtype=settings.dtype,
            text_frozen=not settings.train.trains.language_model,
        )
    groups = parameter_groups(model, training_stage(settings.train))
    if job.placement.gradient_checkpointing:
        model.recompute_activations()
    return zero.wrap(model, groups, settings.train, job.placement, world_size)


def open_loader(
    job: TrainJob, processor: CasaProcessor, start: int, share: Share
) -> tuple[SequenceReader, Iterator[LoadedStep], dict[str, tuple[int, ...]]]:
    """The packed data, this worker's part of each step from ``start`` on, and kind → held-out sequences."""
    settings, train = job.settings, job.settings.train
    reader = SequenceReader(
        open_folder(job.pack),
        {name: open_folder(path) for name, path in job.sources.items()},
        processor,
        images=settings.images,
        dtype=settings.dtype,
    )
    by_kind, held_out = reader.pack.by_kind, {}
    if train.evaluate_every:
        by_kind, held_out = hold_out(by_kind, train.held_out_sequences, seed=settings.seed)
    images, videos = train.image_video_ratio
    order = StepSampler(
        by_kind, ratio=(images, videos), sequences_per_step=train.batch_sizes, seed=settings.seed
    )
    steps = iterate_steps(
        reader,
        order,
        start=start,
        stop=train.steps,
        share=share,
        ahead=job.placement.steps_ahead,
        threads=job.placement.loader_threads,
    )
    return reader, steps, held_out
