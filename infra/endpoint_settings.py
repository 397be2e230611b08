"""Bounds of the endpoint and who may use it: the recipe sets them (`deploy.limits`, `deploy.access`), `serve`
keeps them."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from casa_core.media.limits import MAX_PIXELS

MIB = 1024 * 1024
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _absolute(path: str) -> str:
    if not PurePath(path).is_absolute():
        raise ValueError(
            "the endpoint runs in another folder, where a relative path leads elsewhere; give an absolute one"
        )
    return path


def _host(name: str) -> str:
    bare = name.strip("[]") if name.startswith("[") else name
    if not bare or any(sign in bare for sign in "/@ ") or (":" in bare and not name.startswith("[")):
        raise ValueError(
            "expected a host name without scheme and port; give for example vision.example.org, "
            "*.example.org, [::1], or * for all"
        )
    return name.lower()


def _origin(origin: str) -> str:
    parts = urlsplit(origin)
    if origin != "*" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
        raise ValueError("expected a scheme and a host; give for example https://a.example.org, or * for all")
    return origin.lower()


def _fetch_host(name: str) -> str:
    if not _FETCH_HOST.fullmatch(name) or _NUMBER.fullmatch(name.partition(":")[0].rsplit(".", 1)[-1]):
        raise ValueError(
            "expected a host's name without scheme and path, no address and no * alone; give for example "
            "images.example.org, *.example.org for all below it, or images.example.org:8080"
        )
    return name.lower()


_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_FETCH_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*(:[1-9][0-9]{{0,4}})?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE)  # a name that ends so is read as an IPv4 address


class Access(BaseModel):
    """Who may use the endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keys: Annotated[str, AfterValidator(_absolute)] | None = Field(
        default=None,
        description="File of API keys (`casa keys add`), on each machine that answers; null: none asked for.",
    )
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(
        default=[],
        description="Host names the endpoint answers to; empty: loopback's where it listens there only, else "
        "all.",
    )
    origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        default=[], description="Web pages of other origins that may use the endpoint, such as https://a.org."
    )
    fetch_hosts: list[Annotated[str, AfterValidator(_fetch_host)]] = Field(
        default=[],
        description="Hosts whose pictures chat calls may name by http(s) addresses, such as "
        "images.example.org or *.example.org; empty: none.",
    )


class Limits(BaseModel):
    """Bounds of one replica. A request beyond one is refused with a 4xx that names the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body_bytes: Count = Field(
        default=20 * MIB, lt=1024 * MIB, description="Largest HTTP request body, counted while it arrives."
    )
    bodies_bytes: Count = Field(
        default=256 * MIB, description="Bodies of all requests in progress together; beyond: 429."
    )
    images_per_request: Count = Field(
        default=16, description="Images in one chat request, over all its turns."
    )
    image_pixels: Count = Field(
        default=MAX_PIXELS, description="Pixels of one image before resizing, as in training."
    )
    request_pixels: Count = Field(
        default=2 * MAX_PIXELS,
        description="Pixels of all images of one chat request before resizing: ten of a phone's pictures.",
    )
    frame_pixels: Count = Field(
        default=4096 * 4096, description="Pixels of one live frame before resizing: more than 4K has."
    )
    stored_files_bytes: Count = Field(
        default=256 * MIB,
        description="Uploaded pictures in memory, all together; the one not used for longest makes room.",
    )
    stored_file_seconds: Seconds = Field(
        default=600.0, description="How long an uploaded picture is kept after its last use, seconds."
    )
    fetches: Count = Field(default=8, description="Pictures fetched from `access.fetch_hosts` at a time.")
    fetch_seconds: Seconds = Field(
        default=10.0, description="A picture that is not fetched by then is refused, seconds."
    )
    choices: Count = Field(default=8, description="Answers to one request, `n`.")
    messages_per_request: Count = Field(default=256, description="Messages in one chat request.")
    text_characters: Count = Field(
        default=100_000, description="Characters of all texts of one request, before they are tokenized."
    )
    json_containers: Count = Field(default=10_000, description="Objects and lists in one JSON body.")
    stop_strings: Count = Field(default=4, description="Stop strings in one request.")
    waiting_requests: Count = Field(
        default=512, description="Requests that wait to be answered; beyond: 429."
    )
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
    start_seconds: Seconds = Field(
        default=10.0, description="A live connection that has not started a session by then is closed."
    )
    body_seconds: Seconds = Field(
        default=30.0, description="An HTTP request body that is not whole by then is refused, seconds."
    )
    idle_seconds: Seconds = Field(
        default=60.0, description="A live connection that sends nothing this long is closed, seconds."
    )
    video_bytes: Count = Field(
        default=200 * MIB,
        lt=1024 * MIB,
        description="Largest video file that is captioned; it is received on disk.",
    )
    video_seconds: Seconds = Field(default=7200.0, description="Longest video that is captioned, seconds.")
    upload_seconds: Seconds = Field(
        default=600.0, description="A video file that has not come whole by then is refused, seconds."
    )
    uploads: Count = Field(
        default=4, description="Video files that are received and captioned at a time; beyond: refused."
    )
    resume_seconds: Seconds = Field(
        default=30.0,
        description="A live session without a connection ends after so long, seconds; earlier where a new "
        "one needs its place.",
    )
    kept_events: Annotated[int, Field(ge=2)] = Field(
        default=512,
        description="Latest events of a live session that are sent again when it is resumed; a client that "
        "leaves so many unread loses its session.",
    )
