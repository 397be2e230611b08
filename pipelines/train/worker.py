"""What each training worker does. Ray Train starts one of these a process; nothing here needs Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from casa_core.backbones.tiny import tiny_config
from casa_core.checkpoint import save_checkpoint
from casa_core.fusion.config import fusion_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing import CasaProcessor
from pipelines.storage import local_copy, open_folder
from pipelines.train import checkpoint, zero
from pipelines.train.loader import LoadedStep, SequenceReader, iterate_steps
from pipelines.train.metrics import MetricsLog, StepMetrics
from pipelines.train.order import StepOrder
from pipelines.train.schedule import learning_rate_factor
from pipelines.train.step import train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything a worker needs to know; plain values, so that it travels to any node.

    Attributes:
        model, train: Those sections of the recipe.
        seed: Of initial weights and data order.
        images: ``False`` trains the blind baseline.
        pack, sources: Input artifacts.
        output: Folder all workers can write.
        zero_stage, threads: How it runs; no part of the result.
    """

    model: dict[str, Any]
    train: dict[str, Any]
    seed: int
    images: bool
    pack: str
    sources: dict[str, str]
    output: str
    zero_stage: int
    threads: int


def train(job: TrainJob, *, rank: int, world_size: int) -> None:
    """Train to the last step, from the newest whole checkpoint if there is one, and export the model."""
    if not torch.cuda.is_available():
        torch.set_num_threads(job.threads)
    with local_copy(open_folder(job.pack) / "tokenizer") as folder:
        processor = CasaProcessor.from_pretrained(folder)
    assert isinstance(processor, CasaProcessor)
    model = build_model(job, processor)
    spec, output = job.train, Path(job.output)
    engine = zero.wrap(
        model,
        stage=job.zero_stage,
        world_size=world_size,
        learning_rate=spec["learning_rate"],
        weight_decay=spec["weight_decay"],
        clip_grad_norm=spec["clip_grad_norm"],
    )
    root = output / "checkpoints"
    saved = checkpoint.newest(root)
    done = checkpoint.load(engine, saved, world_size=world_size) if saved else 0
    log = MetricsLog(output, steps_done=done) if rank == 0 else None
    steps = _steps(job, processor, done, rank, world_size, engine.device)
    for metrics in _run_steps(engine, steps, spec, world_size):
        if log:
            log.write(metrics)
        if metrics.step % spec["checkpoint_every"] == 0 and metrics.step < spec["steps"]:
            checkpoint.save(engine, root, steps_done=metrics.step, rank=rank, world_size=world_size)
    if log:
        log.close()
    with zero.full_weights(engine) as module:
        if rank == 0:
            assert isinstance(module, CasaForConditionalGeneration)
            save_checkpoint(output / "model", module, processor, provenance={"steps": spec["steps"]})


def build_model(job: TrainJob, processor: CasaProcessor) -> CasaForConditionalGeneration:
    """The recipe's model, initialised from the seed; the same on every worker."""
    torch.manual_seed(job.seed)
    tokenizer = processor.tokenizer
    config = tiny_config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=processor.end_id,
        fusion=fusion_config(job.model["fusion"]),
        images_withheld=not job.images,
    )
    model = CasaForConditionalGeneration(config)
    model.initialize_fusion()
    if not job.images:
        # What no text token can reach gets no gradient; left trainable, weight decay alone would change it.
        for part in (model.vision_tower, model.qformer, *(layer.fusion for layer in model.fused_layers())):
            if part is not None:
                part.requires_grad_(False)
    return model.train()


def _steps(
    job: TrainJob, processor: CasaProcessor, start: int, rank: int, world_size: int, device: torch.device
) -> Iterator[LoadedStep]:
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
    return iterate_steps(
        reader, order, start=start, stop=spec["steps"], rank=rank, world_size=world_size, device=device
    )


def _run_steps(
    engine: Any, steps: Iterator[LoadedStep], spec: dict[str, Any], world_size: int
) -> Iterator[StepMetrics]:
    """Take every step, yielding what it did."""
    while True:
        began = time.perf_counter()
        loaded = next(steps, None)
        if loaded is None:
            return
        waited = time.perf_counter() - began
        factor = learning_rate_factor(
            loaded.number,
            steps=spec["steps"],
            warmup_steps=spec["warmup_steps"],
            decay_steps=spec["decay_steps"],
        )
        learning_rate = spec["learning_rate"] * factor
        zero.set_learning_rate(engine, learning_rate)
        totals = train_step(engine, loaded.batch, world_size)
        norm = engine.get_global_grad_norm()
        yield StepMetrics(
            step=loaded.number + 1,
            kind=loaded.step.kind,
            loss=totals.loss,
            learning_rate=learning_rate,
            grad_norm=None if norm is None else float(norm),
            text_tokens=totals.text_tokens,
            image_tokens=totals.image_tokens,
            trained_tokens=totals.trained_tokens,
            seconds=time.perf_counter() - began,
            loader_wait_s=waited,
        )
