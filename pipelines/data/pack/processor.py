"""Tokenizer and processor of a pack artifact: they encode its samples, and training starts from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casa_core.errors import ConfigError, TransferError
from pipelines.storage.errors import attempt
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import open_folder

if TYPE_CHECKING:
    from casa_core.media.images import ImageSettings, VideoOverBudget
    from casa_core.processing.processor import CasaProcessor
    from pipelines.recipe.model import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How samples become ids: what a worker needs to build the processor.

    Attributes:
        tokenizer: Folder of the tokenizer, local or on S3.
        template: Version of the chat template.
        backbone: Decides the vision tower, and so patch and merge size.
        max_side: R_max of still pictures, pixels.
        max_frame_side: R_max of frames, pixels.
        max_video_tokens, min_frame_side, video_over_budget: As in
            :class:`casa_core.media.images.ImageSettings`; evaluation and serving take them from here, too.
        image_placement: Where consecutive images go in the text: see :mod:`casa_core.processing.templates`.
    """

    tokenizer: str
    template: str
    backbone: str
    max_side: int
    max_frame_side: int
    max_video_tokens: int
    min_frame_side: int | None
    video_over_budget: VideoOverBudget
    image_placement: Literal["window_start", "in_place"]


@lru_cache(maxsize=2)
def load_processor(encoding: Encoding) -> CasaProcessor:
    """The processor that training and serving use, too; one per process.

    Raises:
        ConfigError: For an unknown backbone, or a tokenizer without the template's special tokens.
    """
    from transformers import AutoTokenizer

    from casa_core.processing.processor import CasaProcessor

    images = image_settings(
        encoding.backbone,
        encoding.max_side,
        encoding.max_frame_side,
        max_video_tokens=encoding.max_video_tokens,
        min_frame_side=encoding.min_frame_side,
        video_over_budget=encoding.video_over_budget,
    )
    with local_copy(open_folder(encoding.tokenizer)) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return CasaProcessor(
        tokenizer,
        template=encoding.template,
        image_placement=encoding.image_placement,
        **asdict(images),
    )


def image_settings(backbone: str, max_side: int, max_frame_side: int, **video: Any) -> ImageSettings:
    """Sizes of pictures and frames for a backbone's vision tower; arguments as in :class:`Encoding`.

    Raises:
        ConfigError: For an unknown backbone, or a side that holds not even one image token.
    """
    from casa_core.backbones.published import qwen2_5_vl_3b_vision
    from casa_core.config import TinyVisionConfig
    from casa_core.media.images import ImageSettings

    # The paper's Helium sees through Qwen2.5-VL's tower.
    towers: dict[str, Any] = {
        "tiny": TinyVisionConfig,
        "helium": qwen2_5_vl_3b_vision,
        "qwen2_5_vl": qwen2_5_vl_3b_vision,
    }
    if backbone not in towers:
        raise ConfigError(
            f"There is no backbone named {backbone!r}.", "", f"Use one of: {', '.join(towers)}."
        )
    return ImageSettings.for_tower(
        towers[backbone](), max_side=max_side, max_frame_side=max_frame_side, **video
    )


def make_tokenizer(origin: Tokenizer, texts: Iterable[str], template: str, folder: Path) -> str:
    """Trains a tokenizer, or copies one; returns the hash of its definition.

    Args:
        origin: The recipe's ``model.tokenizer``.
        texts: What to train it on; not read where ``origin`` names a tokenizer.
        template: The chat template whose special tokens a trained tokenizer has.
        folder: Where to save it.

    Raises:
        ConfigError: Where the tokenizer that is named cannot be loaded, or lacks a special token.
    """
    from casa_core.processing.tokenizer import add_missing_special_tokens, build_tokenizer

    if origin.train_bpe is not None:
        tokenizer = build_tokenizer(texts, origin.train_bpe.vocab_size, template)
    else:
        assert origin.path is not None, "A recipe's tokenizer is trained or named."
        tokenizer = load_tokenizer(origin.path, origin.revision)
        add_missing_special_tokens(tokenizer, template)
    tokenizer.save_pretrained(folder)
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """A tokenizer from a folder or the hub.

    Raises:
        ConfigError: Where there is none, or the hub does not answer.
    """
    from huggingface_hub import constants
    from transformers import AutoTokenizer

    wanted: dict[str, Any] = {"revision": revision or "main"}
    try:
        if not Path(path).exists() and not constants.is_offline_mode():
            _ask_the_hub(path, wanted["revision"])
        return AutoTokenizer.from_pretrained(path, **wanted)
    except TransferError:
        with contextlib.suppress(OSError, ValueError):
            return AutoTokenizer.from_pretrained(path, local_files_only=True, **wanted)  # of an earlier run
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No tokenizer can be loaded from {path!r}.",
            str(error).partition("\n")[0],
            "Set model.tokenizer.path to a folder with tokenizer.json, or to a repository's name on the hub.",
        ) from error


def _ask_the_hub(repository: str, revision: str) -> None:
    """Raises a sentence where the hub does not answer or does not show a repository.

    Its own client would try for three quarters of a minute, file by file, and print each attempt.
    """
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
    attempt(f"hf://{repository}", lambda: hub.model_info(repository, revision=revision, timeout=10))
