"""What the endpoint answers, as models: they describe the answers in `/openapi.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """Why a request was refused, or that the server failed."""

    message: str = Field(description="What is wrong and what to do instead.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The offending field.", examples=["messages[0].content"])
    code: str = Field(description="Short and stable.", examples=["invalid_value"])


class ErrorResponse(BaseModel):
    """Every answer that is not a success has this body."""

    error: ErrorDetail


class TopLogprob(BaseModel):
    """A token with its log-probability; `bytes` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(BaseModel):
    """Image tokens never enter the text sequence, and stand apart."""

    text_tokens: int
    image_tokens: int
    cached_tokens: int
    audio_tokens: int


class Usage(BaseModel):
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class _Head(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str | None


class ChatCompletion(_Head):
    """The answers to a call without `stream`."""

    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a piece adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Head):
    """One event of a stream; the last is `[DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    fingerprint: str = Field(description="Identity of the training run.")
    max_model_len: int | None = Field(description="Text positions of a conversation with its answer.")
    limits: dict[str, Any] = Field(description="Bounds of one call, by the setting's name.")


class ModelList(BaseModel):
    """All models of this endpoint."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]
    service: Literal["casa"]
    model: str
    fingerprint: str
    checkpoint: str
    live_sessions: int


class Ready(BaseModel):
    """The engine answers."""

    status: Literal["ready"]
    model: str


class NotReady(BaseModel):
    """The engine is stuck or gone."""

    status: Literal["unavailable"]
    reason: str


class FileObject(BaseModel):
    """An uploaded picture; its `id` is a picture's `url` in chat calls."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int = Field(description="Unless it is used before; seconds since 1970.")
    filename: str
    purpose: str
    status: Literal["processed"]


class DeletedFile(BaseModel):
    """An uploaded picture that is forgotten."""

    id: str
    object: Literal["file"]
    deleted: bool


SSE = "text/event-stream"


def event_stream(description: str) -> dict[str, Any]:
    """The description of a chat answer: JSON, or with `stream` server-sent events."""
    chunk = {"$ref": f"#/components/schemas/{ChatCompletionChunk.__name__}"}
    piece = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    data = {"anyOf": [piece, {"const": "[DONE]"}]}
    event = {"type": "object", "description": description, "properties": {"data": data}, "required": ["data"]}
    return {"content": {SSE: {"itemSchema": event}}}
