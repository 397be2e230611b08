"""Conversations → token ids, pictures → patches. Training, evaluation and serving all call this, and nothing
else.

Template ``casa-1`` (each turn wrapped in a start and an end token, as the paper's B.2 does for Helium)::

    <|user|> [image] <|image|> what is this? <|end|> <|assistant|> a circle <|end|>
    <|user|> describe it live <|end|> <|assistant|> [frame] <|image|> a red <|frame_end|> [frame] <|image|> …

``[image]`` marks a position, not a token. ``<|image|>`` follows each run of consecutive images and lies in
*their* window, so the first answer token of a frame is predicted by a token that already sees the frame.
(B.2 gives Helium no delimiters, but then the first word about a frame could only come from the previous
frame's window.)

Shape suffixes: P patches, E values of a patch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.tokenizer import ASSISTANT, END, FRAME_END, IMAGE, SYSTEM, USER
from casa_core.types import EncodedSample, Image, ImageSize, Part, Sample, Text

TEMPLATES = ("casa-1",)
MAX_ASPECT_RATIO = 200  # beyond it a resized side would vanish; the same bound as Qwen2.5-VL's


class CasaProcessor(ProcessorMixin):
    """The text and image side of a checkpoint.

    Args:
        tokenizer: Has the special tokens of :mod:`casa_core.tokenizer`.
        template: Version of the chat template.
        patch_size: Side of a patch, pixels.
        merge_size: Side of the square of patches merged into one image token.
        max_side: R_max: images keep their resolution up to ``max_side``² pixels and their aspect always.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 (transformers' contract)
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "casa-1",
        patch_size: int = 8,
        merge_size: int = 2,
        max_side: int = 64,
        **kwargs: Any,
    ) -> None:
        if template not in TEMPLATES:
            raise ConfigError(
                f"unknown chat template {template!r}",
                f"expected one of {', '.join(TEMPLATES)}",
                "set model.template",
            )
        self.template = template
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.max_side = max_side
        super().__init__(tokenizer, **kwargs)
        self._ids = {
            token: cast(int, tokenizer.convert_tokens_to_ids(token))
            for token in (END, SYSTEM, USER, ASSISTANT, IMAGE, FRAME_END)
        }

    @property
    def end_id(self) -> int:
        """Ends a turn."""
        return self._ids[END]

    @property
    def frame_end_id(self) -> int:
        """Ends what is said about a live frame."""
        return self._ids[FRAME_END]

    @property
    def image_id(self) -> int:
        """Stands after each run of images."""
        return self._ids[IMAGE]

    def template_hash(self) -> str:
        """Names the template's exact token sequences: a probe conversation, encoded."""
        size = ImageSize(self.max_side, self.max_side, self.max_side, self.max_side, 1)
        probe = Sample(
            source="probe",
            sample_id="probe",
            parts=(
                Text(role="system", text="s"),
                Image(),
                Text(role="user", text="q"),
                Text(role="assistant", text="a", trained=True),
                Image(role="assistant", timestamp=0.0),
                Text(role="assistant", text="w", trained=True),
            ),
        )
        encoded = self.encode(probe, [size, size])
        tokens = self.tokenizer.convert_ids_to_tokens(list(encoded.input_ids))
        payload = json.dumps([self.template, tokens, encoded.loss_mask, encoded.image_positions])
        return hashlib.sha256(payload.encode()).hexdigest()

    def encode(
        self, sample: Sample, sizes: Sequence[ImageSize], *, add_generation_prompt: bool = False
    ) -> EncodedSample:
        """Turn a conversation into token ids.

        Args:
            sample: The conversation.
            sizes: One size for each image of it, in order.
            add_generation_prompt: End with the assistant's start token, ready to generate.

        Raises:
            DataError: If the number of sizes is not the number of images.
        """
        images = sum(isinstance(part, Image) for part in sample.parts)
        if images != len(sizes):
            raise DataError(
                f"sample {sample.sample_id!r} has {images} images but {len(sizes)} sizes were given",
                "each image needs its size to count its tokens",
            )
        out = _Encoder(self.tokenizer, self._ids)
        for part in sample.parts:
            out.add(part)
        out.close()
        if add_generation_prompt:
            out.append(self._ids[ASSISTANT], trained=False)
        return EncodedSample(
            tuple(out.ids), tuple(out.mask), tuple(out.image_positions), tuple(out.turns), tuple(sizes)
        )

    def stream_prompt(self, query: str) -> list[int]:
        """What a live stream starts with, up to where its first frame goes: the query's turn, the answer's
        start."""
        turn = (Text(role="user", text=query),) if query else ()
        sample = Sample(source="stream", sample_id="stream", parts=turn)
        return list(self.encode(sample, [], add_generation_prompt=True).input_ids)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens and surrounding spaces."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def image_size(self, height: int, width: int) -> ImageSize:
        """The size an image is resized to: aspect kept, at most ``max_side``² pixels, sides multiples of
        ``patch_size × merge_size``, at least one image token.

        Raises:
            MediaError: ``empty_image`` or ``extreme_aspect_ratio``.
        """
        if height < 1 or width < 1:
            raise MediaError("empty_image", f"an image of {width} by {height} pixels has nothing to see")
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise MediaError(
                "extreme_aspect_ratio",
                f"an image of {width} by {height} pixels is too elongated",
                f"its longer side is more than {MAX_ASPECT_RATIO} times the shorter",
                "crop it",
            )
        factor = self.patch_size * self.merge_size
        scale = min(1.0, self.max_side / math.sqrt(height * width))
        new_height, new_width = (
            max(factor, round(side * scale / factor) * factor) for side in (height, width)
        )
        while new_height * new_width > self.max_side**2 and max(new_height, new_width) > factor:
            # Rounding to multiples can overshoot the budget by one step: take it off the longer side.
            if new_height >= new_width:
                new_height -= factor
            else:
                new_width -= factor
        tokens = (new_height // factor) * (new_width // factor)
        return ImageSize(height, width, new_height, new_width, tokens)

    def grid(self, size: ImageSize) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return size.height // self.patch_size, size.width // self.patch_size

    def patches(self, rgb: NDArray[np.uint8], size: ImageSize) -> torch.Tensor:
        """Resize, normalise to [−1, 1] and cut into patches.

        Args:
            rgb: (height, width, 3).
            size: From :meth:`image_size` of the same picture.

        Returns:
            (P, E) float32, E = 3 · patch_size², in merge-group order: the patches of one image token are
            neighbours.
        """
        if rgb.shape[:2] != (size.height, size.width):
            resized = PILImage.fromarray(rgb).resize((size.width, size.height), PILImage.Resampling.BICUBIC)
            rgb = np.asarray(resized)
        rows, cols = self.grid(size)
        merge, patch = self.merge_size, self.patch_size
        tiles = rgb.reshape(rows // merge, merge, patch, cols // merge, merge, patch, 3)
        flat_PE = np.ascontiguousarray(tiles.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(rows * cols, -1)
        return torch.from_numpy(flat_PE).float().div_(127.5).sub_(1.0)


@dataclass(slots=True)
class _Encoder:
    """Grows a conversation token by token, opening and closing turns."""

    tokenizer: PreTrainedTokenizerBase
    special: dict[str, int]
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    image_positions: list[int] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    role: str | None = None
    pending_images: int = 0
    turn_start: int = 0
    turn_trained: bool = False
    frame_open: bool = False

    def append(self, token: int, *, trained: bool) -> None:
        self.ids.append(token)
        self.mask.append(trained)

    def add(self, part: Part) -> None:
        if part.role != self.role:
            self.close()
            self._open(part.role)
        if isinstance(part, Image):
            if part.role == "assistant" and not self.pending_images:
                self._end_frame()
            self.pending_images += 1
        else:
            self._see_images()
            for token in self._words(part.text):
                self.append(token, trained=part.trained)
            self.turn_trained |= part.trained

    def _words(self, text: str) -> list[int]:
        """Ids of a run of text. Whoever spells a special token in it gets its letters, not its power."""
        if not text:
            return []
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def close(self) -> None:
        """End the open turn. A live stream has no end of its own: its last frame ends like the others."""
        if self.role is None:
            return
        self._see_images()
        if self.frame_open:
            self._end_frame()
        else:
            self.append(self.special[END], trained=self.turn_trained)
        if self.turn_trained:
            self.turns.append((self.turn_start, len(self.ids)))
        self.role = None

    def _open(self, role: str) -> None:
        token = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[role]
        self.append(self.special[token], trained=False)
        self.role, self.turn_start, self.turn_trained, self.frame_open = role, len(self.ids), False, False

    def _see_images(self) -> None:
        """The token after a run of images: the window's first, from which the answer is predicted."""
        if not self.pending_images:
            return
        self.image_positions.extend([len(self.ids)] * self.pending_images)
        self.append(self.special[IMAGE], trained=False)
        self.frame_open = self.role == "assistant"
        self.pending_images = 0

    def _end_frame(self) -> None:
        if self.frame_open:
            self.append(self.special[FRAME_END], trained=self.turn_trained)
            self.frame_open = False


AutoProcessor.register(CasaConfig, CasaProcessor)
