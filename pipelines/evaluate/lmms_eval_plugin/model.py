"""The model class that lmms-eval makes: it answers a task's questions with one engine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from casa_core.dtypes import DTYPES
from casa_core.engine.requests import SamplingParams
from casa_core.errors import CasaError, ConfigError
from casa_core.types import Sample
from pipelines.dag.checkpoints import find_checkpoint, local_checkpoint
from pipelines.evaluate.lmms_eval_plugin.messages import to_sample
from pipelines.evaluate.lmms_eval_plugin.sampling import sampling_params
from pipelines.evaluate.model_engine import Mode, Model, ModelEngine
from pipelines.storage.uri import open_folder

logger = logging.getLogger("casa.evaluate")
AUTO_SLOTS = 16
"""Questions answered together under ``--batch_size auto``."""
REFUSED = "[CASA_REQUEST_REFUSED]"
"""Begins the answer to a question that the engine refused, for those who read the samples."""
CHOICES = {"dtype": ("auto", *DTYPES), "quantize": ("none", "int8"), "mode": get_args(Mode)}


class Casa(lmms):
    """A checkpoint as a chat model of lmms-eval.

    Args:
        pretrained: A checkpoint, or the train artifact around it: a folder or a URI.
        dtype: ``auto`` (as stored), ``fp32`` or ``bf16``.
        quantize: ``none``, or ``int8`` on CPUs.
        batch_size: Questions that are answered together; ``auto`` is 16. Answers do not depend on it.
        max_side: Largest side of a picture, pixels, where it is not the checkpoint's.
        max_video_tokens: Image tokens that a video is fitted to, where they are not the checkpoint's.
        mode: How a video is shown: ``offline``, all frames before the question, or ``streaming``, frame by
            frame as a live stream.
        device: As torch names it; by default a GPU if there is one, each of several processes its own.
        max_batch_size: Changes nothing; lmms-eval passes it.

    Raises:
        ConfigError: For an argument that does not exist, or a value that cannot work.
        StoreError: If there is no checkpoint in the folder.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        *,
        dtype: str = "auto",
        quantize: str = "none",
        batch_size: int | str = 1,
        max_side: int | None = None,
        max_video_tokens: int | None = None,
        mode: Mode = "offline",
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        given = {"dtype": dtype, "quantize": quantize, "mode": mode}
        sizes = {"max_side": max_side, "max_video_tokens": max_video_tokens}
        _check(pretrained, given, sizes, unknown)
        self._slots = _slots(batch_size)
        with local_checkpoint(find_checkpoint(open_folder(str(pretrained)))) as folder:
            model = Model(
                folder=folder,
                digest="",
                fingerprint="",
                slots=self._slots,
                device=device or _own_device(),
                threads=0,
                **given,  # pyright: ignore[reportArgumentType]
                **sizes,
            )
            self._device = torch.device(model.device)
            self._engine = ModelEngine(model)
            self._engine.load()

    @property
    def device(self) -> torch.device:
        """The engine's."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Questions that are answered together."""
        return self._slots

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """Answer the questions: a ``GenerationResult`` with token counts for each, in their order.

        The engine is fed continuously: a question is read when its turn comes, so that no more pictures are
        in memory than are being answered. One that the engine refuses gets an answer that begins with
        ``REFUSED`` and has the reason.

        Raises:
            ConfigError: For generation settings that cannot be obeyed, before anything is asked.
            CasaError: The first refusal, if every question is refused.
        """
        context = self._engine.context
        sampling = [sampling_params(request.arguments[2], context) for request in requests]
        found = self._engine.run(self._answers(requests, sampling))
        refused = [one for one in found if isinstance(one, CasaError)]
        if refused:
            if len(refused) == len(found):
                raise refused[0]
            logger.warning("%d of %d questions were refused, first: %s", len(refused), len(found), refused[0])
        return [_refusal(one) if isinstance(one, CasaError) else one for one in found]

    async def _answers(
        self, requests: Sequence[Instance], sampling: Sequence[SamplingParams]
    ) -> list[GenerationResult | CasaError]:
        found: dict[int, GenerationResult | CasaError] = {}
        places = iter(range(len(requests)))
        # One thread reads: a task's functions need not bear several.
        with (
            ThreadPoolExecutor(1, "casa-questions") as reader,
            tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar,
        ):

            async def ask() -> None:
                for at in places:
                    found[at] = await self._answer(reader, requests[at], sampling[at])
                    bar.update()

            async with asyncio.TaskGroup() as group:
                # As many again as have slots, so that the next are read and prepared meanwhile.
                for _ in range(2 * self._slots + 1):
                    group.create_task(ask())
        return [found[at] for at in range(len(requests))]

    async def _answer(
        self, reader: ThreadPoolExecutor, request: Instance, sampling: SamplingParams
    ) -> GenerationResult | CasaError:
        try:
            sample = await asyncio.get_running_loop().run_in_executor(reader, self._sample, request)
            answer = await self._engine.answer(sample, sampling, sample.sample_id)
        except CasaError as refused:  # given to the caller in its place, as the other questions go on
            return refused
        counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.completion_tokens)
        return GenerationResult(text=answer.text, token_counts=counts)

    def _sample(self, request: Instance) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = request.arguments
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return to_sample(ChatMessages(messages=messages), f"{task}/{split}/{doc_id}")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused, with a ``ConfigError``: the engine generates, and scores no given continuation."""
        raise _unsupported("loglikelihood", "A CASA model answers by generating text.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused, with a ``ConfigError``: a question is asked once, whole."""
        raise _unsupported("generate_until_multi_round", "A CASA model is asked each question once here.")

    def clean(self) -> None:
        """Free the engine's memory; a later question loads it again."""
        super().clean()
        self._engine.close()


def _check(
    pretrained: object, given: dict[str, str], sizes: dict[str, int | None], unknown: dict[str, Any]
) -> None:
    known = ("pretrained", *given, *sizes, "batch_size", "device")
    if unknown:
        raise ConfigError(
            f"The model argument `{next(iter(unknown))}` does not exist.",
            f"There are {', '.join(known)}.",
            "Correct `--model_args`.",
        )
    if not pretrained:
        raise ConfigError(
            "No checkpoint is named.", "It has no default.", "Give `--model_args pretrained=FOLDER`."
        )
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise ConfigError(
                f"The model argument `{name}` is {value!r}.",
                f"It may be {', '.join(CHOICES[name])}.",
                "Correct `--model_args`.",
            )
    for name, size in sizes.items():
        if size is not None and not (type(size) is int and size > 0):
            raise ConfigError(
                f"The model argument `{name}` is {size!r}.",
                "It is a whole number above 0.",
                "Correct `--model_args`.",
            )


def _slots(batch_size: int | str) -> int:
    text = str(batch_size)
    if text.partition(":")[0] == "auto":
        return AUTO_SLOTS
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"The batch size is {text!r}.",
            "It is the number of questions that are answered together.",
            "Set `--batch_size` to a whole number above 0, or to auto.",
        )
    return int(text)


def _unsupported(kind: str, why: str) -> ConfigError:
    return ConfigError(
        f"The model casa cannot run tasks of output type {kind}.",
        why,
        "Take a variant of the task with `output_type: generate_until`.",
    )


def _own_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def _refusal(refused: CasaError) -> GenerationResult:
    text = " ".join(part for part in (REFUSED, refused.what, refused.why) if part)
    return GenerationResult(text=text, token_counts=TokenCounts(output_tokens=0))
