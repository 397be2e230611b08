"""Chat templates: conversations → token ids, which of them are trained, and where the images are.

``[image]`` marks a position, not a token: the images at a position lie before the token there, which is the
first of their window. A template is a version: its token sequences never change, another gets another name.

``casa-1``: each turn wrapped in a start and an end token, as the paper's B.2 does for Helium::

    <|user|> [image] <|image|> what is this? <|end|> <|assistant|> a circle <|end|>
    <|user|> describe it live <|end|> <|assistant|> [frame] <|image|> a red <|frame_end|> [frame] <|image|> …

``<|image|>`` follows each run of consecutive images and lies in *their* window, so the first answer token of
a frame is predicted by a token that already sees the frame. (B.2 gives Helium no delimiters, but then the
first word about a frame could only come from the previous frame's window.)

``qwen-1``: Qwen2.5-VL's own chat template without its image placeholders (B.2); line breaks are real, the
system turn is the one it adds where a conversation has none::

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    <|vision_start|> [image] <|vision_end|>what is this?<|im_end|>
    <|im_start|>assistant
    a circle<|im_end|>

    … <|im_start|>assistant
    <|vision_start|> [frame] <|vision_end|>a red<|im_end|><|vision_start|> [frame] <|vision_end|>…

An image's position is its ``<|vision_end|>``: ``<|vision_start|>`` still belongs to the window before,
``<|vision_end|>`` is the first token of the image's own. Each picture has its pair of tokens, the frames of
one video share one pair. A live frame is what Qwen's template does not know: the words about it end with
``<|im_end|>``, as an answer does. The ids are those of the rendered template, tokenised between special
tokens; only the words after ``assistant`` and its line break are tokenised apart from it, because a
generated answer starts there.

Consecutive images (no text part between): ``window_start`` puts all of them at the first one's
``<|vision_end|>``, so that they are one window that starts with all its images, and no token of it lies
between two of them. ``in_place`` leaves each at its own, as insertion into the text needs it. ``casa-1`` has
one token after all of them, so that both are the same there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from casa_core.errors import ConfigError
from casa_core.processing.tokenizer import (
    ASSISTANT,
    END,
    FRAME_END,
    IM_END,
    IM_START,
    IMAGE,
    SYSTEM,
    USER,
    VISION_END,
    VISION_START,
)
from casa_core.types import Image, Part, Role

ImagePlacement = Literal["window_start", "in_place"]
QWEN_SYSTEM_PROMPT = "You are a helpful assistant."


@dataclass
class TemplateWriter(ABC):
    """Grows one conversation token by token, opening and closing turns.

    Attributes:
        tokenizer: Has the template's special tokens.
        special: Their ids.
        placement: Where consecutive images go.
        ids, mask, image_positions, turns: As in :class:`casa_core.types.EncodedSample`.
    """

    tokens: ClassVar[tuple[str, ...]]
    end: ClassVar[str]
    frame_end: ClassVar[str]
    frame_prefix: ClassVar[tuple[str, ...]]
    image: ClassVar[str]

    tokenizer: PreTrainedTokenizerBase
    special: dict[str, int]
    placement: ImagePlacement
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    image_positions: list[int] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    role: Role | None = None
    pending_images: list[Image] = field(default_factory=list)
    turn_start: int = 0
    turn_trained: bool = False
    frame_open: bool = False

    def add(self, part: Part) -> None:
        """The next part, in its role's turn."""
        if part.role != self.role:
            self.close()
            self.open(part.role)
        if isinstance(part, Image):
            if part.role == "assistant" and not self.pending_images:
                self._end_frame()
            self.pending_images.append(part)
        else:
            self._flush_images()
            self._add_text(part.text, trained=part.trained)
            self.turn_trained |= part.trained

    def open(self, role: Role) -> None:
        """Start a turn: for the assistant's, up to where its answer begins."""
        self._start_turn(role)
        self.role, self.turn_start, self.turn_trained, self.frame_open = role, len(self.ids), False, False

    def close(self) -> None:
        """End the open turn. A live stream has no end of its own: its last frame ends like the others."""
        if self.role is None:
            return
        self._flush_images()
        if self.frame_open:
            self._end_frame()
        else:
            self._append(self.end, trained=self.turn_trained)
        if self.turn_trained:
            self.turns.append((self.turn_start, len(self.ids)))
        self._finish_turn()
        self.role = None

    @abstractmethod
    def _start_turn(self, role: Role) -> None:
        """Tokens before a turn's first part."""

    @abstractmethod
    def _finish_turn(self) -> None:
        """Tokens after a turn's end token."""

    @abstractmethod
    def _add_text(self, text: str, *, trained: bool) -> None:
        """A run of text."""

    @abstractmethod
    def _add_images(self, images: Sequence[Image]) -> None:
        """Consecutive images: their delimiters, and a position for each."""

    def _flush_images(self) -> None:
        if self.pending_images:
            self._add_images(self.pending_images)
            self.frame_open = self.role == "assistant"
            self.pending_images = []

    def _end_frame(self) -> None:
        if self.frame_open:
            self._append(self.frame_end, trained=self.turn_trained)
            self.frame_open = False

    def _append(self, token: str, *, trained: bool = False) -> None:
        self.ids.append(self.special[token])
        self.mask.append(trained)

    def _append_text(self, text: str, *, trained: bool) -> None:
        """A special token that is spelled out in a text is tokenised as its letters."""
        if text:
            words = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            self.ids.extend(words)
            self.mask.extend([trained] * len(words))


class Casa1Writer(TemplateWriter):
    """``casa-1``."""

    tokens = (END, SYSTEM, USER, ASSISTANT, IMAGE, FRAME_END)
    end = END
    frame_end = FRAME_END
    frame_prefix = ()
    image = IMAGE

    def _start_turn(self, role: Role) -> None:
        self._append({"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[role])

    def _finish_turn(self) -> None:
        pass

    def _add_text(self, text: str, *, trained: bool) -> None:
        self._append_text(text, trained=trained)

    def _add_images(self, images: Sequence[Image]) -> None:
        self.image_positions.extend([len(self.ids)] * len(images))
        self._append(IMAGE)


@dataclass
class Qwen1Writer(TemplateWriter):
    """``qwen-1``.

    Attributes:
        text, text_trained: Text since the last special token. It is tokenised as one run, as the
            rendered template is: a line break at the end of one part and one at the start of the next are a
            single token.
    """

    tokens = (IM_START, IM_END, VISION_START, VISION_END)
    end = IM_END
    frame_end = IM_END
    frame_prefix = (VISION_START,)
    image = VISION_END

    text: str = ""
    text_trained: bool = False

    def _start_turn(self, role: Role) -> None:
        if not self.ids and role != "system":
            self._append(IM_START)
            self._add_text(f"system\n{QWEN_SYSTEM_PROMPT}", trained=False)
            self._append(IM_END)
            self._finish_turn()
        self._append(IM_START)
        self._add_text(f"{role}\n", trained=False)
        if role == "assistant":
            self._flush()

    def _finish_turn(self) -> None:
        self._add_text("\n", trained=False)
        self._flush()

    def _add_text(self, text: str, *, trained: bool) -> None:
        if trained != self.text_trained:
            self._flush()
        self.text += text
        self.text_trained = trained

    def _add_images(self, images: Sequence[Image]) -> None:
        first: int | None = None
        for count in _shared_delimiters(images):
            self._append(VISION_START)
            first = len(self.ids) if first is None else first
            position = first if self.placement == "window_start" else len(self.ids)
            self.image_positions.extend([position] * count)
            self._append(VISION_END)

    def _append(self, token: str, *, trained: bool = False) -> None:
        self._flush()
        super()._append(token, trained=trained)

    def _flush(self) -> None:
        text, self.text = self.text, ""
        self._append_text(text, trained=self.text_trained)


def _shared_delimiters(images: Sequence[Image]) -> Iterator[int]:
    """Runs of images within one pair of delimiters: the neighbouring frames of one video, or one picture."""
    run = 0
    for image, following in zip(images, [*images[1:], None], strict=True):
        run += 1
        same_video = (
            following is not None
            and image.timestamp is not None
            and following.timestamp is not None
            and image.media == following.media
        )
        if not same_video:
            yield run
            run = 0


WRITERS: dict[str, type[TemplateWriter]] = {"casa-1": Casa1Writer, "qwen-1": Qwen1Writer}


def special_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> dict[str, int]:
    """Ids of a template's special tokens.

    Raises:
        ConfigError: For an unknown template, or one that this tokenizer was not made for.
    """
    if template not in WRITERS:
        raise ConfigError(
            f"Unknown chat template {template!r}.",
            f"Expected one of {', '.join(WRITERS)}.",
            "Set model.template.",
        )
    ids: dict[str, int] = {}
    for token in WRITERS[template].tokens:
        found = tokenizer.convert_tokens_to_ids(token)
        # An unknown token gets the id of the tokenizer's "unknown", where it has one.
        if not isinstance(found, int) or tokenizer.convert_ids_to_tokens(found) != token:
            raise ConfigError(
                f"The tokenizer has no token {token}.",
                f"The chat template {template!r} is made of {', '.join(WRITERS[template].tokens)}.",
                "Take the backbone's own tokenizer, or set model.template to the one it was made for.",
            )
        ids[token] = found
    return ids
