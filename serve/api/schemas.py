"""The request body of /v1/chat/completions: OpenAI's names and vLLM's, and only what this endpoint honours.

A parameter it cannot honour is refused rather than ignored, so that no client relies on it. Parameters that
merely describe the call (`user`, …), and others at their neutral value, are accepted. null is absent, and an
unknown field that holds nothing changes nothing: clients send back what they were sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

UNION_TAG = "<"  # tags of unions start with it, so that error paths can leave them out
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "request_id", "cache_salt"),
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # vLLM's and SGLang's
    "best_of": (1,),
    "use_beam_search": (False,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "include_reasoning": (True, False),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "priority": (0,),
}
"""Parameters that are accepted at these values only; at empty ones (`[]`, `{}`) any parameter is."""


def holds_nothing(value: Any) -> bool:
    """null, an empty text or container, or one that holds nothing else."""
    if isinstance(value, dict):
        return all(map(holds_nothing, value.values()))
    if isinstance(value, list):
        return all(map(holds_nothing, value))
    return value is None or value == ""


class Body(BaseModel):
    """A JSON object of a client: no unknown fields, no silent conversions; null is absent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_absent(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        known = cls.model_fields
        return {
            name: value
            for name, value in body.items()
            if (value is not None if name in known else not holds_nothing(value))
        }


def _whole_characters(text: str) -> str:
    """JSON can hold half of a surrogate pair (`"\\ud83d"`), which is no character and cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "broken_text", "the text holds half of a character (a lone surrogate)"
        ) from error
    return text


Words = Annotated[str, AfterValidator(_whole_characters)]


class TextPart(Body):
    """Words inside a message."""

    type: Literal["text"]
    text: Words


class ImageUrl(Body):
    """A picture; `url` is a `data:image/…;base64,` URI, the id of an uploaded file, or the http(s) address of
    one on a host that this endpoint fetches from. `detail` changes nothing here."""

    url: Words
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
        custom_error_message="a part has the `type` 'text' or 'image_url'; others are not supported here",
    ),
]
Content = Annotated[
    Annotated[Words, Tag("<string>")] | Annotated[list[ContentPart], Tag("<parts>")],
    Discriminator(lambda value: "<string>" if isinstance(value, str) else "<parts>"),
]


class Message(Body):
    """One turn. `developer` is OpenAI's newer name for `system`; `name` is not shown to the model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = Field(default="", description="A user's may not be blank.")
    name: str | None = None


class StreamOptions(Body):
    """What a stream carries besides the words."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _at_least_one(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("too_small", "an answer has at least one token; -1 asks for the most")
    return tokens


Most = Annotated[int, Field(ge=-1), AfterValidator(_at_least_one)]


def _name_accepted(schema: dict[str, Any]) -> None:
    """Describe the parameters that are no fields, since they change nothing."""
    for name in sorted(IGNORED):
        schema["properties"][name] = {"description": "Accepted; changes nothing."}
    for name, values in NEUTRAL.items():
        schema["properties"][name] = {
            "enum": [*values, None],
            "description": "Accepted at these values only.",
        }


class ChatCompletionRequest(Body):
    """A conversation to continue. null is absent."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra=_name_accepted)

    model: Words
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Most | None = Field(
        default=None,
        description="Longest answer, tokens; -1, or more than the endpoint's own limit, means that limit. "
        "An answer that reaches it ends with `finish_reason` `length`.",
    )
    max_tokens: Most | None = Field(default=None, description="OpenAI's older name.")
    n: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Answers wanted. The seed of each is one more than that of the one before."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0, greedy, when absent."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="0 is greedy.")
    top_k: Annotated[int, Field(ge=-1)] | None = Field(
        default=None, description="vLLM's: the likeliest tokens that are kept; 0 or -1 keeps all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="vLLM's: the share of the likeliest token's probability that is kept."
    )
    logprobs: bool = Field(default=False, description="Give each token with its log-probability.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = Field(
        default=0, description="Likeliest tokens named at each place; needs `logprobs`."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Words | list[Words] | None = None

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
                if not holds_nothing(value) and value not in NEUTRAL[name]:
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
