"""A real HTTP and WebSocket server in a thread, and the small pictures and clips that tests send to it."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import uvicorn
from PIL import Image as Picture

from casa_core.engine.client import EngineClient
from casa_core.engine.protocol import LoopProtocol
from infra.http_protocol import BoundedHttpProtocol
from pipelines.recipe.model import Deploy
from serve.api.settings import ServeSettings
from serve.asgi import build_app
from serve.engine_pool import EnginePool
from serve.loading import engine_settings
from tests.support.serve.fakes import COLOURS, FakeEngine

MODEL = "casa-test"


def settings_with(**changes: Any) -> ServeSettings:
    """Settings of a test deployment; `limits` may be a plain dict."""
    deploy = Deploy(model_name=MODEL).model_dump()
    return ServeSettings.model_validate(
        {**deploy, "model_folder": ".", "fingerprint": "f" * 16, "checkpoint": "c" * 16, **changes}
    )


@contextmanager
def running(
    engine: LoopProtocol | EnginePool,
    settings: ServeSettings,
    *,
    around: Callable[[Any], Any] = lambda app: app,
    **options: Any,
) -> Iterator[str]:
    """Serve an engine, or several, on a free loopback port; yields the URL. A fake is as large as the limits
    say.

    Args:
        around: Wraps the app in an ASGI layer of the test's.
        options: `build_app`'s.
    """
    if isinstance(engine, FakeEngine):
        engine.settings = engine_settings(settings.limits)
    client = engine if isinstance(engine, EnginePool) else EngineClient(engine)
    app = around(build_app(client, settings, **options))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            log_level="warning",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def picture(colour: str = "red", *, size: int = 32, kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    out = io.BytesIO()
    Picture.new("RGB", (size, size), COLOURS[colour]).save(out, kind)
    return out.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    """A base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    """An `image_url` part of a chat message."""
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


def question(text: str, *pictures: bytes) -> list[dict[str, Any]]:
    """One user message about some pictures."""
    parts = [*map(image_part, pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def binary_frame(timestamp: float, data: bytes) -> bytes:
    """A live frame as a binary message."""
    return struct.pack("<d", timestamp) + data


def write_clip(
    path: Path,
    colours: list[str],
    *,
    seconds_each: float = 1.0,
    fps: int = 10,
    size: int = 64,
    start: int = 0,
) -> Path:
    """An H.264 clip that shows one colour after another, the first from ``start`` seconds on."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        shown = start * fps
        for colour in colours:
            pixels = np.full((size, size, 3), COLOURS[colour], np.uint8)
            for _ in range(round(seconds_each * fps)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = shown, Fraction(1, fps)
                shown += 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
