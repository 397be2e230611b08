"""What each training worker does. Ray Train starts one of these a process; nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.recipe.where import TrackerName
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import open_folder
from pipelines.train import zero
from pipelines.train.build import build_model, training_stage
from pipelines.train.checkpoint.resume import resume
from pipelines.train.checkpoint.save import Checkpointer
from pipelines.train.loader import LoadedStep, SequenceReader, Share, iterate_steps
from pipelines.train.loop import TrainLoop
from pipelines.train.metrics import MetricsLog
from pipelines.train.sampler import StepSampler, hold_out
from pipelines.train.tracking import TrackedRun, Trackers


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
        zero_stage, offload, gradient_checkpointing, sequences_per_forward, threads, loader_threads,
        steps_ahead: How it runs; no part of the result.
        track, run_name, run_key, track_folder: Which trackers follow it (:mod:`pipelines.train.tracking`),
            and under which name.
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
    loader_threads: int = 2
    steps_ahead: int = 2
    track: tuple[TrackerName, ...] = ()
    run_name: str = ""
    run_key: str = ""
    track_folder: str = ""

    @property
    def precision(self) -> zero.Precision:
        """As the recipe's ``train`` section says."""
        return self.train.get("precision", "fp32")

    @property
    def dtype(self) -> torch.dtype:
        """What forwards compute in."""
        return zero.DTYPES[self.precision]


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
    share = Share(rank=rank, world_size=world_size, sequences_per_forward=job.sequences_per_forward)
    reader, steps, held_out = open_loader(job, processor, done, share)
    loop = TrainLoop(engine, spec, job.seed, share, reader, held_out)
    with ExitStack() as stack:
        logs = [stack.enter_context(closing(log)) for log in _logs(job, done)] if rank == 0 else []
        for metrics in loop.run(steps):
            for log in logs:
                log.write(metrics)
            saver.check()
            if metrics.step % spec["checkpoint_every"] == 0 or metrics.step == spec["steps"]:
                held = metrics.held_out_loss
                best = sum(held.values()) / len(held) if held else None
                for log in logs:
                    log.flush()
                saver.save(engine, processor, steps_done=metrics.step, metric=best)
        saver.close()
    with zero.full_weights(engine) as module:
        if rank == 0:
            assert isinstance(module, CasaForConditionalGeneration)
            save_checkpoint(output / "model", module, processor, provenance={"steps": spec["steps"]})


def _logs(job: TrainJob, steps_done: int) -> list[MetricsLog | Trackers]:
    """What the first worker writes every step to."""
    config = {
        **{f"model.{key}": value for key, value in job.model["fusion"].items()},
        **{f"train.{key}": value for key, value in job.train.items()},
        "model.backbone": job.model["backbone"],
        "seed": job.seed,
    }
    run = TrackedRun(job.run_name, job.run_key, job.track_folder, config)
    return [
        MetricsLog(Path(job.output), steps_done=steps_done),
        Trackers(job.track, run, steps_done=steps_done),
    ]


def build_engine(job: TrainJob, processor: CasaProcessor, world_size: int) -> Any:
    """The recipe's model, what it trains made trainable, under DeepSpeed."""
    model = build_model(
        job.model, processor, seed=job.seed, images=job.images, start=job.start, dtype=job.dtype
    )
    groups = parameter_groups(model, training_stage(job.train))
    if job.gradient_checkpointing:
        model.recompute_activations()
    return zero.wrap(model, groups, zero_settings(job, world_size))


def zero_settings(job: TrainJob, world_size: int) -> zero.ZeroSettings:
    """How the engine computes and what it shards, from the job."""
    spec = job.train
    return zero.ZeroSettings(
        stage=job.zero_stage,
        world_size=world_size,
        precision=job.precision,
        offload=job.offload,
        betas=tuple(spec.get("adam_betas", (0.9, 0.99))),
        weight_decay=spec["weight_decay"],
        clip_grad_norm=spec["clip_grad_norm"],
    )


def open_loader(
    job: TrainJob, processor: CasaProcessor, start: int, share: Share
) -> tuple[SequenceReader, Iterator[LoadedStep], dict[str, tuple[int, ...]]]:
    """The packed data, this worker's part of each step from ``start`` on, and what is held out of all."""
    reader = SequenceReader(
        open_folder(job.pack),
        {name: open_folder(path) for name, path in job.sources.items()},
        processor,
        images=job.images,
        dtype=job.dtype,
    )
    spec = job.train
    by_kind, held_out = reader.pack.by_kind, {}
    if spec.get("evaluate_every"):
        by_kind, held_out = hold_out(by_kind, spec["held_out_sequences"], seed=job.seed)
    order = StepSampler(
        by_kind,
        ratio=tuple(spec["image_video_ratio"]),
        sequences_per_step={"image": spec["sequences_per_step"], "video": spec["videos_per_step"]},
        seed=job.seed,
    )
    steps = iterate_steps(
        reader,
        order,
        start=start,
        stop=spec["steps"],
        share=share,
        ahead=job.steps_ahead,
        threads=job.loader_threads,
    )
    return reader, steps, held_out
