"""Arguments that transformers documents for processors and chat templates: those that are followed, and the
reasons for refusing the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casa_core.errors import ConfigError

_CUT = (
    "A cut could take away tokens that images stand before.",
    "Shorten the conversation; a smaller max_side makes fewer image tokens.",
)
_FRAMES = (
    "A message does not say which frames are shown, and when; a Sample does.",
    "Pass a Sample with an Image per frame (data: the video's bytes, timestamp: seconds into it).",
)
_SETTINGS = (
    "Pictures are resized and normalised as the model was trained.",
    "Leave it out; the processor's attributes hold the settings, max_side above all.",
)
_NO_SOUND = ("The model reads texts and images.", "Leave it out.")
_IN_TEMPLATE = ("The template has no turn for it.", "Write it into the system's or the user's message.")
_TOKENIZER = ("It belongs to texts without images.", "Call processor.tokenizer for a text alone.")
OPTION_REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("truncation", "max_length", "stride"), _CUT),
    **dict.fromkeys(("videos", "num_frames", "fps", "video_metadata", "do_sample_frames"), _FRAMES),
    **dict.fromkeys(("audio", "sampling_rate", "load_audio_from_video"), _NO_SOUND),
    **dict.fromkeys(("tools", "documents"), _IN_TEMPLATE),
    **dict.fromkeys(
        (
            "text_pair",
            "text_target",
            "text_pair_target",
            "is_split_into_words",
            "return_overflowing_tokens",
            "return_offsets_mapping",
            "return_special_tokens_mask",
            "return_token_type_ids",
            "return_length",
        ),
        _TOKENIZER,
    ),
    **dict.fromkeys(
        (
            *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_center_crop", "do_pad"),
            *("size", "crop_size", "min_pixels", "max_pixels", "resample", "rescale_factor"),
            *("image_mean", "image_std", "input_data_format", "data_format", "device"),
        ),
        _SETTINGS,
    ),
    "chat_template": (
        "The template is a part of the model, written in Python and recorded in its checkpoint.",
        "Leave it out; processor.template names the one that the model was trained with.",
    ),
    "pad_to_multiple_of": ("Padding never reaches the model, so no width is faster.", "Leave it out."),
    "padding_side": ("Generated tokens continue rows at their right end.", 'Leave it at "left".'),
    "return_attention_mask": ("The mask tells padding from tokens.", "Leave it at True."),
}
"""Options of transformers' processors that are refused → why, and what to do."""

_UNKNOWN = ("Neither the chat template nor the image settings have it.", "Leave it out.")
_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")
_DONE: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "return_attention_mask": (True,),
    "padding_side": ("left",),
    "add_special_tokens": (True, False),  # the template writes its own, and no others
    "sanitize_control_tokens": (True, False),  # texts never make them
}
"""Values that ask for what is done anyway."""
_NOTHING = frozenset(OPTION_REASONS) - frozenset(_DONE)
"""Options whose ``False`` asks for nothing."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a batch is made of conversations.

    Attributes:
        padding: Whether rows of different length are filled up.
        assistant_masks: Whether to return which tokens are answers.
    """

    padding: bool
    assistant_masks: bool

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> CallOptions:
        """Follow the known options; those of ``text_kwargs`` and the like count as if given directly.

        Raises:
            ConfigError: For an option, or a value, that is not available, with its reason.
        """
        options = {name: value for name, value in given.items() if name not in _GROUPS}
        for group in _GROUPS:
            options |= given.get(group) or {}
        padding = options.pop("padding", True)
        tensors = options.pop("return_tensors", "pt")
        masks = bool(options.pop("return_assistant_tokens_mask", False))
        if tensors not in ("pt", "auto"):
            raise ConfigError(
                f"`return_tensors = {tensors!r}` is not available.",
                "The model takes torch tensors.",
                'Leave it at "pt".',
            )
        padded = padding is True or padding == "longest"
        if not (padded or padding is None or padding is False or padding == "do_not_pad"):
            raise ConfigError(
                f"`padding = {padding!r}` is not available.",
                "Rows are filled up to the longest; padding never reaches the model.",
                "Pass True or False.",
            )
        for name, value in options.items():
            _refuse(name, value)
        return cls(padded, masks)


def _refuse(name: str, value: Any) -> None:
    """Raise for an option that asks for something."""
    empty = isinstance(value, list | tuple | dict) and not value
    if value is None or empty or (value is False and name in _NOTHING):
        return
    if isinstance(value, bool | str) and value in _DONE.get(name, ()):
        return
    why, remedy = OPTION_REASONS.get(name, _UNKNOWN)
    raise ConfigError(f"`{name} = {value!r:.80}` is not available.", why, remedy)
