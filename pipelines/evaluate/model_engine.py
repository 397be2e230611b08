"""A model of an evaluation in one engine, which is fed with conversations in any number and order.

The runner's workers and the plugin of lmms-eval ask it, so that both show a model the same and decode alike.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Sample
from pipelines.data.store.rows import is_stream, is_video
from pipelines.evaluate.kept.answers import Answer
from pipelines.evaluate.watching import comment, watch
from pipelines.storage.host import cached_copy
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from casa_core.analysis.masking import Masking
    from casa_core.engine.client import EngineClient
    from casa_core.engine.engine import Engine

T = TypeVar("T")
Mode = Literal["offline", "streaming"]
VIDEO_TOKENS = 46_080
"""Image tokens of a video in the paper's training on videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint and how its answers are computed.

    Attributes:
        folder: The checkpoint; a remote one is copied to each machine once.
        digest: Changes with the folder's files; empty where it lies on every machine.
        fingerprint: From :func:`pipelines.evaluate.kept.answers.model_fingerprint`.
        sampling: Apart from the length of an answer, which is the benchmark's.
        slots: Questions answered together.
        device: ``auto`` takes a GPU if there is one.
        threads: Torch's in one worker; 0 lets torch choose.
        mode: How a video is shown: all frames before the question, or frame by frame as a live stream.
        max_side: Largest side of a picture where it is not the checkpoint's; frames of a video may have a
            bound of their own.
        max_video_tokens: Image tokens that a video shown as a whole is fitted to, as training fits it; by
            default the checkpoint's, and ``VIDEO_TOKENS`` where it has none.
        mask: What attention is masked, see :mod:`casa_core.analysis.masking`.
    """

    folder: Folder
    digest: str
    fingerprint: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    dtype: str = "auto"
    quantize: str = "none"
    slots: int = 16
    device: str = "auto"
    threads: int = 1
    mode: Mode = "offline"
    max_side: int | None = None
    max_video_tokens: int | None = None
    mask: Masking | None = None


class ModelEngine:
    """Answers conversations with one model, whose engine is loaded when it is first needed.

    Not by the constructor, and the event loop neither: Ray takes an error there for a lost actor, and starts
    it again and again.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._masked = ExitStack()

    @property
    def context(self) -> int:
        """Text tokens of a prompt and its answer together; errors as :meth:`load`."""
        self.load()
        return self._context

    def run(self, answering: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop that answers come on, from any other thread, and wait for it.

        Raises:
            Exception: The coroutine's; of a group, the first.
        """
        with self._lock:
            loop = self._loop
        try:
            return asyncio.run_coroutine_threadsafe(answering, loop).result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    def load(self) -> EngineClient:
        """The engine; several threads may call.

        Raises:
            StoreError: If the folder is not a checkpoint.
            ConfigError: If it cannot be run as the model's settings want it.
        """
        with self._lock:
            return self._loaded

    async def answer(self, sample: Sample, sampling: SamplingParams, request_id: str = "") -> Answer:
        """Answer a conversation; within :meth:`run`.

        Raises:
            CasaError: As the engine refuses the conversation, or one of its pictures.
        """
        engine, live = self.load(), is_stream(sample)
        if live or (self._model.mode == "streaming" and is_video(sample)):
            async with self._streams:
                return await (comment if live else watch)(engine, sample, sampling)
        request = GenerationRequest(sample=sample, sampling=sampling, request_id=request_id)
        return Answer.of(await engine.generate(request))

    def close(self) -> None:
        """Free the engine and its memory; what is asked later loads another. Nothing may be running."""
        with self._lock:
            client: EngineClient | None = self.__dict__.pop("_loaded", None)
        if client is not None:
            self.run(client.ended())
        self._masked.close()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="casa-answers", daemon=True).start()
        return loop

    @cached_property
    def _streams(self) -> asyncio.Semaphore:
        """A place for each slot of the engine: it refuses a stream that has none."""
        return asyncio.Semaphore(self._model.slots)

    @cached_property
    def _loaded(self) -> EngineClient:
        import torch
        from transformers.utils import logging

        from casa_core.dtypes import DTYPES
        from casa_core.engine.client import EngineClient
        from casa_core.engine.engine import Engine
        from casa_core.engine.settings import EngineSettings

        logging.disable_progress_bar()
        own = self._model
        if own.threads:
            torch.set_num_threads(own.threads)
        settings = EngineSettings(
            slots=own.slots, answer_slots=0, waiting=1 << 20, live_share=math.inf, threads=True
        )
        options: dict[str, Any] = {} if own.quantize == "none" else {"quantize": own.quantize}
        if own.dtype != "auto":
            options["dtype"] = DTYPES[own.dtype]
        with cached_copy(own.folder, own.digest) as folder:
            engine = Engine.from_pretrained(folder, device=own.device, settings=settings, **options)
        self._change(engine)
        self._context = engine.context
        return EngineClient(engine)

    def _change(self, engine: Engine) -> None:
        """Have an engine show and attend to pictures as the model says."""
        from casa_core.analysis.masking import masked_attention

        own, shown = self._model, engine.processor
        shown.max_side = own.max_side or shown.max_side
        shown.max_video_tokens = own.max_video_tokens or shown.max_video_tokens or VIDEO_TOKENS
        _ = shown.image_settings  # refuses what cannot work
        if own.mask:
            self._masked.enter_context(masked_attention(engine.model, own.mask))
