"""The processor of a checkpoint: conversations → token ids, pictures → patches. Training, evaluation and
serving all call this, and nothing else.

It joins a tokenizer, a chat template (:mod:`casa_core.processing.templates`) and image settings
(:mod:`casa_core.media.images`).

Shape suffixes: P patches, E values of a patch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, DataError
from casa_core.folder_code import PROCESSOR_AUTO_MAP, write_code
from casa_core.inputs import IMAGE_INPUTS
from casa_core.media.images import MAX_ASPECT_RATIO, ImageSettings, VideoOverBudget
from casa_core.processing.call_options import CallOptions
from casa_core.processing.image_processor import CasaImageProcessor, image_tensors
from casa_core.processing.prepare import prepare_images
from casa_core.processing.processor_inputs import Conversation, Row, read_rows
from casa_core.processing.templates import WRITERS, ImagePlacement, special_ids
from casa_core.processing.tokenizer import keep_control_tokens_out_of_texts
from casa_core.types import EncodedSample, Image, ImageSize, Sample, Text

__all__ = ["MAX_ASPECT_RATIO", "TEMPLATES", "CasaProcessor"]

TEMPLATES = tuple(WRITERS)


class CasaProcessor(ProcessorMixin):
    """The text and image side of a checkpoint.

    Args:
        tokenizer: Has the template's special tokens.
        template: Version of the chat template, see :mod:`casa_core.processing.templates`.
        image_placement: Where consecutive images go: ``window_start`` for fusion layers, ``in_place`` for
            insertion.
        patch_size, merge_size, temporal_patch_size, max_side, max_frame_side, min_side, max_video_tokens,
            min_frame_side, video_over_budget, image_mean, image_std, resample: As
            :class:`casa_core.media.images.ImageSettings` documents them.

    Raises:
        ConfigError: If a setting cannot work, or the tokenizer lacks a token of the template, or makes one of
            a text.
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
        image_placement: ImagePlacement = "window_start",
        temporal_patch_size: int = 1,
        max_frame_side: int | None = None,
        min_side: int | None = None,
        max_video_tokens: int | None = None,
        min_frame_side: int | None = None,
        video_over_budget: VideoOverBudget = "smaller",
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: str = "bicubic",
        **kwargs: Any,
    ) -> None:
        self._ids = special_ids(tokenizer, template)
        keep_control_tokens_out_of_texts(tokenizer, self._ids)
        if image_placement not in get_args(ImagePlacement):
            raise ConfigError(
                f"`image_placement = {image_placement!r}` is not available.",
                f"Expected one of {', '.join(get_args(ImagePlacement))}.",
                "Leave it out of CasaProcessor.for_model, which takes what the fusion needs.",
            )
        self.template = template
        self.image_placement: ImagePlacement = image_placement
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.temporal_patch_size = temporal_patch_size
        self.max_side = max_side
        self.max_frame_side = max_frame_side
        self.min_side = min_side
        self.max_video_tokens = max_video_tokens
        self.min_frame_side = min_frame_side
        self.video_over_budget = video_over_budget
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.resample = resample
        self._writer = WRITERS[template]
        self.auto_map = dict(PROCESSOR_AUTO_MAP)  # of processor_config.json
        super().__init__(tokenizer, **kwargs)
        tokenizer.padding_side = "left"  # a pipeline pads batches by it, and answers follow at the right
        _ = self.image_settings  # refuses what cannot work

    @classmethod
    def for_model(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        config: CasaConfig,
        *,
        template: str,
        image_placement: ImagePlacement | None = None,
        **changes: Any,
    ) -> CasaProcessor:
        """The processor that a model's vision tower and fusion call for.

        Args:
            tokenizer: Has the template's special tokens.
            config: The model's.
            template: Version of the chat template.
            image_placement: Where consecutive images go; by default as the model's fusion needs it.
            changes: Image settings that differ from the tower's, ``max_side`` above all.
        """
        if image_placement is None:
            image_placement = "in_place" if config.fusion_settings.inserts else "window_start"
        images = dataclasses.asdict(ImageSettings.for_tower(config.vision_config, **changes))
        return cls(tokenizer, template=template, image_placement=image_placement, **images)

    @property
    def image_settings(self) -> ImageSettings:
        """How pictures become patches, from the attributes as they are now."""
        names = [setting.name for setting in dataclasses.fields(ImageSettings)]
        return ImageSettings(**{name: getattr(self, name) for name in names})

    @property
    def image_processor(self) -> CasaImageProcessor:
        """The image side alone: pipelines look for it, to make batches."""
        return CasaImageProcessor(self)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Does nothing: a checkpoint folder imports this package, instead of holding a copy of a module."""

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write tokenizer, settings, and the module by which transformers finds this class."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_code(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call returns."""
        return ["input_ids", "attention_mask", *IMAGE_INPUTS]

    @property
    def end_id(self) -> int:
        """Id of the token that ends a turn."""
        return self._ids[self._writer.end]

    @property
    def frame_end_id(self) -> int:
        """Id of the token that ends the words about a live frame."""
        return self._ids[self._writer.frame_end]

    @property
    def frame_prefix_ids(self) -> list[int]:
        """Ids before a live frame, after the end of the one before: tokens of the old window."""
        return [self._ids[token] for token in self._writer.frame_prefix]

    @property
    def image_id(self) -> int:
        """Id of the token after an image, the first of its window."""
        return self._ids[self._writer.image]

    def template_hash(self) -> str:
        """Digest of the template's exact token sequences, from a probe conversation."""
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
        payload = [self.template, tokens, encoded.loss_mask, encoded.image_positions]
        if self.template != "casa-1":  # there it changes nothing
            payload.append(self.image_placement)
        return hashlib.sha256(json.dumps(payload).encode()).hexdigest()

    def encode(
        self, sample: Sample, sizes: Sequence[ImageSize], *, add_generation_prompt: bool = False
    ) -> EncodedSample:
        """Turn a conversation into token ids.

        Args:
            sample: The conversation.
            sizes: One size for each image of it, in order.
            add_generation_prompt: End with what the assistant's answer follows, ready to generate.

        Raises:
            DataError: If the number of sizes is not the number of images.
        """
        images = sum(isinstance(part, Image) for part in sample.parts)
        if images != len(sizes):
            raise DataError(
                f"Sample {sample.sample_id!r} has {images} images but {len(sizes)} sizes were given.",
                "Each image needs its size to count its tokens.",
                "Pass one size for each image, in order.",
            )
        out = self._writer(self.tokenizer, self._ids, self.image_placement)
        for part in sample.parts:
            out.add(part)
        out.close()
        if add_generation_prompt:
            out.open("assistant")
        return EncodedSample(
            tuple(out.ids), tuple(out.mask), tuple(out.image_positions), tuple(out.turns), tuple(sizes)
        )

    def stream_prompt(self, query: str) -> list[int]:
        """What a live stream starts with, up to where its first frame goes (before
        :attr:`frame_prefix_ids`): the query's turn, the answer's start."""
        turn = (Text(role="user", text=query),) if query else ()
        sample = Sample(source="stream", sample_id="stream", parts=turn)
        return list(self.encode(sample, [], add_generation_prompt=True).input_ids)

    def further_prompt(self, query: str, *, after_frame: bool) -> list[int]:
        """A viewer's further turn in the middle of a live stream, up to where the answer to it begins.

        Args:
            after_frame: It follows the token that ends a frame's words; otherwise the stream's beginning.
        """
        out = self._writer(self.tokenizer, self._ids, self.image_placement)
        out.open("assistant")
        out.frame_open = after_frame
        start = len(out.ids) + after_frame  # the frame's end is there already
        out.add(Text(role="user", text=query))
        out.close()
        out.open("assistant")
        return out.ids[start:]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens and surrounding spaces."""
        return self.decode_piece(ids).strip()

    def decode_piece(self, ids: Sequence[int]) -> str:
        """The same with the spaces around it, as a part of a longer text has them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token alone, special ones by their name; U+FFFD where it is a part of a character."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def image_size(
        self, height: int, width: int, *, frame: bool = False, most_tokens: int | None = None
    ) -> ImageSize:
        """The size a picture, or a frame of a video, is resized to: see
        :meth:`casa_core.media.images.ImageSettings.size`."""
        return self.image_settings.size(height, width, frame=frame, most_tokens=most_tokens)

    def grid(self, size: ImageSize) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_settings.grid(size)

    def patches(self, rgb: NDArray[np.uint8], size: ImageSize) -> torch.Tensor:
        """Resized, normalised patches (P, E): see :meth:`casa_core.media.images.ImageSettings.patches`."""
        return self.image_settings.patches(rgb, size)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: Conversation | Sequence[Conversation],
        images: Any = None,
        *,
        add_generation_prompt: bool = True,
        padding: bool | str = True,
        return_tensors: str = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Conversations and their pictures → tensors, as transformers' processors are called.

        Args:
            text: One conversation or several: a :class:`Sample`, a list of messages with
                ``{"type": "text", "text": …}`` and ``{"type": "image"}`` parts, or a string: one user turn
                with its images before the text.
            images: Pictures of the image parts that bring none, in order, in any spelling of
                :mod:`casa_core.processing.picture_sources`. For several conversations flat, or a list for
                each.
            add_generation_prompt: End every conversation with what the assistant's answer follows.
            padding: Fill shorter rows up on the left; ``False`` refuses rows of different length.
            return_tensors: ``pt``.
            options: ``return_assistant_tokens_mask``; others of transformers are refused with their reason.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, L), ``pixel_values`` (P, E), ``image_grid_thw`` (I, 3)
            patches, and ``image_counts`` (B, L): how many images stand right before each token; with the mask
            asked for, ``assistant_masks`` (B, L): 1 for tokens of answers.

        Raises:
            ConfigError: For an option that is not available.
            DataError: If a conversation is not understood, or pictures and image parts do not match.
            MediaError: If a picture cannot be read or resized.
        """
        given = {"padding": padding, "return_tensors": return_tensors, **options}
        return self._batch(read_rows(text, images), add_generation_prompt, CallOptions.read(given))

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Conversation | Sequence[Conversation],
        images: Any = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = True,
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """The same as a call, under the name and with the arguments of transformers and its pipelines.

        Raises:
            ConfigError: Where the rendered text is asked for: an image has a position among the tokens and no
                token of its own, so a text could not say where it is. Where an answer is to be continued: the
                template closes every turn. And for an option that is not available.
            DataError, MediaError: As a call does.
        """
        if not tokenize or not return_dict:
            raise ConfigError(
                "The chat template gives token ids and image positions together, not a text.",
                "An image has a position among the tokens and none of its own.",
                "Leave tokenize and return_dict at True, or pass the messages to the processor itself.",
            )
        if continue_final_message:
            raise ConfigError(
                f"`continue_final_message = {continue_final_message!r}` is not available.",
                "The template closes every turn, an answer's too.",
                "End the conversation with a user's message.",
            )
        call: dict[str, Any] = {"images": images, "add_generation_prompt": add_generation_prompt}
        return self(conversation, **{**call, **options, **(processor_kwargs or {})})

    def _batch(self, rows: list[Row], add_generation_prompt: bool, options: CallOptions) -> BatchFeature:
        settings = self.image_settings
        encoded: list[EncodedSample] = []
        patches_PE: list[torch.Tensor] = []
        for row in rows:
            images = prepare_images(settings, row.sample, row.pictures)
            patches_PE += images.patches_PE
            encoded.append(
                self.encode(images.sample, images.sizes, add_generation_prompt=add_generation_prompt)
            )
        longest = max(len(row.input_ids) for row in encoded)
        gaps = [longest - len(row.input_ids) for row in encoded]
        if any(gaps) and not options.padding:
            raise DataError(
                f"The conversations have {longest - max(gaps)} to {longest} tokens.",
                "Without padding the rows of a batch are of one length.",
                "Set padding=True, or pass one conversation at a time.",
            )
        fill = lambda values, with_: torch.tensor(  # noqa: E731
            [[with_] * (longest - len(own)) + list(own) for own in values], dtype=torch.long
        )
        before = [np.bincount(row.image_positions, minlength=len(row.input_ids)) for row in encoded]
        data = {
            "input_ids": fill([row.input_ids for row in encoded], self._padding_id() if any(gaps) else 0),
            "attention_mask": fill([[1] * len(row.input_ids) for row in encoded], 0),
            **image_tensors(settings, patches_PE, [size for row in encoded for size in row.images]),
            "image_counts": fill([counts.tolist() for counts in before], 0),
        }
        if options.assistant_masks:
            data["assistant_masks"] = fill([row.loss_mask for row in encoded], 0)
        return BatchFeature(data)

    def _padding_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise ConfigError(
                "The tokenizer has no padding token.",
                "Conversations of different length are padded to the longest.",
                "Set tokenizer.pad_token, or pass one conversation at a time.",
            )
        return int(pad)


AutoProcessor.register(CasaConfig, CasaProcessor)
