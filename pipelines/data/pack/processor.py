"""The tokenizer and processor of a pack artifact: those that encode, and that training then starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casa_core.errors import ConfigError
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import open_folder

if TYPE_CHECKING:
    from casa_core.media.images import ImageSettings
    from casa_core.processing.processor import CasaProcessor

FRAME_SIDE = 448
"""R_max of a video's frames where nothing is said of them (paper, B.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How samples become ids: what a worker needs to build the processor.

    Attributes:
        tokenizer: Folder of the tokenizer, local or on S3.
        template: Version of the chat template.
        backbone: Decides the vision tower, and so patch and merge size.
        max_side: R_max of still pictures, pixels.
        max_frame_side: R_max of frames; ``None``: 448, or ``max_side`` where that is less.
        image_placement: Where consecutive images go in the text: see :mod:`casa_core.processing.templates`.
    """

    tokenizer: str
    template: str
    backbone: str
    max_side: int
    max_frame_side: int | None = None
    image_placement: Literal["window_start", "in_place"] = "window_start"


@lru_cache(maxsize=2)
def load_processor(encoding: Encoding) -> CasaProcessor:
    """The processor that training and serving will use too; one a process.

    Raises:
        ConfigError: For an unknown backbone, or a tokenizer without the template's special tokens.
    """
    from transformers import AutoTokenizer

    from casa_core.processing.processor import CasaProcessor

    images = image_settings(encoding.backbone, encoding.max_side, encoding.max_frame_side)
    with local_copy(open_folder(encoding.tokenizer)) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return CasaProcessor(
        tokenizer,
        template=encoding.template,
        image_placement=encoding.image_placement,
        **asdict(images),
    )


def image_settings(backbone: str, max_side: int, max_frame_side: int | None = None) -> ImageSettings:
    """How a backbone's vision tower wants its pictures.

    Args:
        backbone: As ``model.backbone`` names it.
        max_side: R_max of still pictures, pixels.
        max_frame_side: R_max of frames; ``None``: 448, or ``max_side`` where that is less.

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
    frames = min(FRAME_SIDE, max_side) if max_frame_side is None else max_frame_side
    return ImageSettings.for_tower(towers[backbone](), max_side=max_side, max_frame_side=frames)


def make_tokenizer(how: dict[str, Any], texts: Iterable[str], template: str, folder: Path) -> str:
    """Trains a tokenizer, or copies one; returns the hash of its definition.

    Args:
        how: ``{"train_bpe": {"vocab_size": n}}`` or ``{"path": folder or hub name}``, as the recipe has it.
        texts: What to train it on; not touched where there is one already.
        template: The chat template whose special tokens a trained one has.
        folder: Where it is put.

    Raises:
        ConfigError: Where no tokenizer is named, or the one named cannot be loaded.
    """
    from casa_core.processing.tokenizer import add_missing_special_tokens, build_tokenizer

    if how.get("path"):
        tokenizer = _load_tokenizer(how["path"], how.get("revision"))
        add_missing_special_tokens(tokenizer, template)
    elif how.get("train_bpe"):
        tokenizer = build_tokenizer(texts, how["train_bpe"]["vocab_size"], template)
    else:
        raise ConfigError(
            "The recipe names no tokenizer.",
            f"Found {how!r}.",
            "Set model.tokenizer.train_bpe.vocab_size or model.tokenizer.path.",
        )
    tokenizer.save_pretrained(folder)
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def _load_tokenizer(path: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"There is no tokenizer at {path!r}.",
            str(error).partition("\n")[0],
            "Set model.tokenizer.path to a folder with tokenizer.json, or to a repository's name on the hub.",
        ) from error
