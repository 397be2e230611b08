"""The request body of /v1/chat/completions: OpenAI's names, and only what this endpoint honours.

A parameter it cannot honour is refused rather than ignored, so that no client relies on it.
Parameters that merely describe the call (`user`, …), and others at their neutral value, are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

UNION_TAG = "<"  # tags of unions start with it, so that error paths can leave them out
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class Body(BaseModel):
    """A JSON object of a client: no unknown fields, no silent conversions."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Body):
    """Words inside a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """A picture; `url` must be a `data:image/…;base64,` URI. `detail` changes nothing here."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Body):
    """A picture inside a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"text": "<text>", "image_url": "<image>"}.get(kind) if isinstance(kind, str) else None


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(
        _part_tag,
        custom_error_type="invalid_value",
        custom_error_message="a part needs a `type`, either 'text' or 'image_url'",
    ),
]
Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[ContentPart], Tag("<parts>")],
    Discriminator(lambda value: "<string>" if isinstance(value, str) else "<parts>"),
]


class Message(Body):
    """One turn. `developer` is OpenAI's newer name for `system`; `name` is not shown to the model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None


class StreamOptions(Body):
    """What a stream carries besides the words."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatCompletionRequest(Body):
    """A conversation to continue."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description="OpenAI's older name.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0, greedy, when absent."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if name in IGNORED:
                continue
            if name in NEUTRAL:
                if value is not None and value not in NEUTRAL[name]:
                    raise PydanticCustomError(
                        "unsupported_parameter",
                        "{param} is not supported by this endpoint except at its default",
                        {"param": name},
                    )
                continue
            kept[name] = value
        return kept

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty strings left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)
