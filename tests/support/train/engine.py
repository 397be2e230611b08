"""Small engines with something to save, and a process that saves them on S3 until it ends or is killed."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch

from casa_core.backbones.tiny import tiny_config
from casa_core.batch import PackedSequence, collate
from casa_core.config import TrainingStage
from casa_core.model import CasaForConditionalGeneration
from casa_core.param_groups import parameter_groups
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from pipelines.recipe.model import Train
from pipelines.recipe.where import TrainWorkers
from pipelines.storage import s3
from pipelines.storage.uri import open_folder
from pipelines.train import zero
from pipelines.train.checkpoint.resume import resume
from pipelines.train.checkpoint.save import Checkpointer
from tests.support.train.workers import process_group

PART_BYTES = 5 << 20
WIDTH = 384
"""A save of this model takes several parts."""


def small_processor() -> CasaProcessor:
    return CasaProcessor(build_tokenizer(["red circle"], 300), max_side=48)


def engine_of(processor: CasaProcessor, seed: int, hidden: int = 96) -> Any:
    torch.manual_seed(seed)
    tokenizer: Any = processor.tokenizer
    model = CasaForConditionalGeneration(
        tiny_config(
            vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=processor.end_id, hidden_size=hidden
        )
    ).train()
    groups = parameter_groups(model, TrainingStage(language_model=True, vision_blocks=0))
    spec = Train(steps=1, sequences_per_step=1, learning_rate=1e-4, weight_decay=0.0)
    engine = zero.wrap(model, groups, spec, TrainWorkers(zero_stage=2), world_size=1)
    train(engine, seed)
    return engine


def train(engine: Any, seed: int) -> None:
    """A step on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 200, (24,), generator=generator).tolist()
    packed = PackedSequence(
        input_ids=ids,
        loss_mask=[n > 3 for n in range(24)],
        document_starts=[0],
        image_positions=[1],
        image_tokens=[4],
        image_grids=[(4, 4)],
        patches_PE=[torch.rand(16, 192, generator=generator)],
    )
    engine.backward(engine(**collate([packed]).inputs()).loss)
    engine.step()


def main(folder: str, *, slowly: bool) -> None:
    """Resume from what is in the folder, then save step 10, train, and save step 20 in the background."""
    s3.PART_BYTES = PART_BYTES
    torch.set_num_threads(1)
    root, processor = open_folder(folder), small_processor()
    with tempfile.TemporaryDirectory() as meeting, process_group(meeting):
        engine = engine_of(processor, 1, hidden=WIDTH)
        done = resume(engine, root, rank=0, world_size=1)
        print(f"resumes from {done}", flush=True)
        saver = Checkpointer(root, rank=0, world_size=1, keep=2, keep_best=1)
        if not done:
            saver.save(engine, processor, steps_done=10)
            saver.close()
            train(engine, 2)
        if slowly:
            send = s3.S3Upload._send_part

            def send_slowly(self: s3.S3Upload) -> None:
                send(self)
                print("part of 20", flush=True)
                time.sleep(1)

            s3.S3Upload._send_part = send_slowly
        saver.save(engine, processor, steps_done=20)
        saver.close()


if __name__ == "__main__":
    main(sys.argv[1], slowly="--slowly" in sys.argv)
