"""Settings and limits of one deployment. The deploy stage sends them as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from casa_core.media.limits import MAX_PIXELS

MIB = 1024 * 1024
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limits(_Section):
    """Bounds of one replica. A request beyond one is refused with a 4xx that names the limit."""

    body_bytes: Count = Field(
        default=20 * MIB, description="Largest HTTP request body, counted while it arrives."
    )
    images_per_request: Count = Field(
        default=16, description="Images in one chat request, over all its turns."
    )
    image_pixels: Count = Field(
        default=MAX_PIXELS, description="Pixels of one image or frame before resizing, as in training."
    )
    choices: Count = Field(default=8, description="Answers to one request, `n`.")
    messages_per_request: Count = Field(default=256, description="Messages in one chat request.")
    stop_strings: Count = Field(default=4, description="Stop strings in one request.")
    waiting_requests: Count = Field(default=64, description="Requests that wait to be answered; beyond: 429.")
    answers: Count = Field(default=16, description="Requests answered at a time, in one batch.")
    sessions: Count = Field(default=16, description="Live connections open at once; beyond: refused.")
    frame_bytes: Count = Field(default=4 * MIB, description="Encoded bytes of one live frame.")
    session_frames: Count = Field(
        default=14_400, description="Frames in one live session (two hours at 2 fps)."
    )
    queued_frames: Count = Field(
        default=8, description="Frames of a session waiting for the engine; beyond: oldest dropped."
    )
    queued_prompts: Count = Field(
        default=4, description="Further questions of a session that wait for their answers; beyond: refused."
    )
    query_characters: Count = Field(default=4000, description="Length of a live session's query.")
    start_seconds: float = Field(
        default=10.0, gt=0, description="A live connection that has not started a session by then is closed."
    )
    body_seconds: float = Field(
        default=30.0, gt=0, description="An HTTP request body that is not whole by then is refused, seconds."
    )
    idle_seconds: float = Field(
        default=60.0, gt=0, description="A live connection that sends nothing this long is closed, seconds."
    )
    resume_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A live session without a connection ends after so long, seconds; earlier where a new "
        "one needs its place.",
    )
    kept_events: Annotated[int, Field(ge=2)] = Field(
        default=512,
        description="Latest events of a live session that are sent again when it is resumed; a client that "
        "leaves so many unread loses its session.",
    )


class Replicas(_Section):
    """Least and largest number of Ray Serve replicas."""

    min: Count
    max: Count


class ServeSettings(_Section):
    """One deployment: which checkpoint, under which name, with what limits."""

    model_folder: Path = Field(
        description="Exported checkpoint folder: config, weights, tokenizer, processor."
    )
    model_name: str = Field(min_length=1, description="The name clients put in `model`.")
    fingerprint: str = Field(default="", description="Identity of this deployment; /healthz reports it.")
    checkpoint: str = Field(default="", description="Fingerprint of the training run the weights come from.")
    max_new_tokens: Count = Field(
        description="Longest answer, tokens: when a request names none, and the most it may name.",
    )
    max_tokens_per_frame: Count = Field(
        default=16, description="Longest caption of one live frame, tokens; likewise default and bound."
    )
    live_query: str = Field(description="Query of a live session whose client names none.")
    demo_clips: Path | None = Field(default=None, description="Folder of mp4 files the live page offers.")
    fetch: str = Field(
        default="",
        description="Context manager, as module:name, from a folder's URI and digest to a local copy of it.",
    )
    digests: dict[str, str] = Field(
        default={}, description="Digest of each folder's files, by setting, for those that `fetch` must copy."
    )
    engine: str = Field(default="casa_core.engine.engine:Engine", description="Engine class, as module:name.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Type to compute in; `auto`: that of the checkpoint."
    )
    compile: bool = Field(default=False, description="Compile decode steps before the replica is ready.")
    graphs: bool = Field(
        default=False, description="Record decode steps and the vision tower as CUDA graphs."
    )
    quantize: Literal["none", "int8"] = Field(
        default="none", description="Type in which decode steps hold the weights, on CPUs; `none`: `dtype`."
    )
    replicas: Replicas
    num_cpus: float = Field(default=0.5, ge=0, description="CPUs that Ray reserves for each replica.")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for each replica.")
    loopback_only: bool = Field(
        default=True, description="Keep the replicas' internal ports on 127.0.0.1 as well."
    )
    limits: Limits = Limits()
