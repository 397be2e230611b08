"""HTTP client of the endpoint: ask about pictures."""

from __future__ import annotations

import json
import mimetypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from casa_core.errors import ClusterError, ConfigError, MediaError
from casa_core.media.data_uri import to_data_uri
from casa_core.media.decode import encode_jpeg
from casa_core.media.video import VideoFrames, frame_times

CONNECT_S = 5.0
ANSWER_S = 300.0
START_S = 30.0
"""Seconds for the first answer of an endpoint: one that was scaled down to nothing loads its model first."""
_TIMEOUT = httpx.Timeout(ANSWER_S, connect=CONNECT_S)


def authorization() -> dict[str, str]:
    """The header with the API key that the environment names in `CASA_API_KEY`; none without it."""
    key = os.environ.get("CASA_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def user_turn(question: str, images: Sequence[Path] = ()) -> dict[str, Any]:
    """A user's message about some pictures.

    Raises:
        MediaError: A picture cannot be read.
    """
    pictures = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def answer(
    url: str, messages: Sequence[dict[str, Any]], *, model: str | None = None, stream: bool = True
) -> Iterator[str]:
    """Continue a conversation and yield the answer as it is generated.

    Args:
        url: The endpoint's, for example `http://127.0.0.1:8000`.
        messages: In OpenAI's form; the last is the user's.
        model: Name of a served model; the endpoint's first by default.
        stream: Yield pieces as they come; otherwise the whole answer at once.

    Raises:
        ClusterError: Nothing listens there, or the endpoint failed.
        ConfigError: The endpoint refused the request; its reason is in the message.
    """
    body = {"model": model or served_model(url), "messages": list(messages), "stream": stream}
    try:
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body,
            headers=authorization(),
            timeout=_TIMEOUT,
            trust_env=False,
        ) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(url, response)
            if stream:
                yield from _words(url, _lines(response.iter_bytes()))
            else:
                yield json.loads(response.read())["choices"][0]["message"]["content"]
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines, ended by a line feed alone: words may hold what else ends lines for Python, U+2028 above all."""
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        yield from (line.decode() for line in whole)
    if held:
        yield held.decode()


def served_model(url: str) -> str:
    """Name of the endpoint's first model.

    Raises:
        ClusterError: Nothing listens there, or it is something else.
    """
    try:
        limits = httpx.Timeout(START_S, connect=CONNECT_S)
        answer = httpx.get(f"{url}/v1/models", headers=authorization(), timeout=limits, trust_env=False)
        return answer.raise_for_status().json()["data"][0]["id"]
    except httpx.HTTPStatusError as error:
        raise _refusal(url, error.response) from error
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ClusterError(
            f"{url} is not an endpoint of this project.", "It lists no models.", "Check the address."
        ) from error


def encoded_frames(video: Path, fps: float) -> Iterator[tuple[float, bytes]]:
    """`(timestamp, JPEG bytes)` every 1/fps seconds: the frames that training sees at these times.

    Raises:
        MediaError: `not_a_video`, `empty_file` or `truncated_video`.
    """
    if not fps > 0:
        raise ConfigError(f"`fps` is {fps}.", "It must be above 0.", "Models are trained with 2.0.")
    try:
        with VideoFrames(video) as frames:
            times = frame_times(0.0, frames.duration, fps)
            for time_s, pixels in zip(times, frames.at(times), strict=True):
                yield time_s, encode_jpeg(pixels)
    except FileNotFoundError as error:
        raise MediaError("not_a_video", f"{video} does not exist.", "", "Check the path.") from error
    except MediaError as error:
        why = f"{error.what} {error.why}"
        raise MediaError(error.reason, f"{video} cannot be decoded.", why, error.remedy) from error


def _words(url: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        payload = line.removeprefix("data: ")
        if not payload or payload == "[DONE]":
            continue
        chunk = json.loads(payload)
        if "error" in chunk:
            raise endpoint_error(url, chunk["error"])
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _data_uri(image: Path) -> str:
    try:
        data = image.read_bytes()
    except OSError as error:
        raise MediaError("not_an_image", f"{image} cannot be read.", str(error), "Check the path.") from error
    guessed = mimetypes.guess_type(image.name)[0] or ""
    media_type = guessed if guessed.startswith("image/") else "image/png"  # the endpoint looks at the bytes
    return to_data_uri(data, media_type)


def _refusal(url: str, response: httpx.Response) -> ClusterError | ConfigError:
    try:
        return endpoint_error(url, response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ClusterError(
            f"{url} answered with HTTP {response.status_code}, not as an endpoint of this project.",
            response.text[:200],
            "Check the address.",
        )


def endpoint_error(url: str, error: dict[str, Any]) -> ClusterError | ConfigError:
    """What an endpoint's error says, for people."""
    if error["type"] == "invalid_request_error":
        return ConfigError(f"The endpoint refused the request ({error['code']}).", error["message"])
    return ClusterError(f"The endpoint at {url} failed ({error['code']}).", error["message"], "Try again.")


def unreachable(url: str, error: Exception) -> ClusterError:
    """No endpoint answers."""
    return ClusterError(
        f"No endpoint answers at {url}.",
        str(error) or type(error).__name__,
        "`casa run` starts one and `casa status` shows where it listens.",
    )
