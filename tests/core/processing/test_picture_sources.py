"""Pictures in every spelling of transformers are the same pixels; what cannot be read is refused by name."""

from __future__ import annotations

import ast
import base64
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from casa_core.errors import CasaError, DataError, MediaError
from casa_core.processing import picture_sources
from casa_core.processing.picture_sources import picture_of_part, picture_to_rgb
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from tests.support.core.engine import picture, png
from tests.support.paths import ROOT

RGB = picture(7)
BYTES = png(7)
BASE64 = base64.b64encode(BYTES).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
TENSOR = torch.from_numpy(RGB.copy())


class Site(BaseHTTPRequestHandler):
    """/picture.png, /moved to it, /slow without end, /large, and nothing else."""

    def do_GET(self) -> None:
        pages = {"/picture.png": (200, BYTES), "/moved": (302, b""), "/large": (200, bytes(4096))}
        status, body = pages.get(self.path.split("?")[0], (404, b"nothing here"))
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                try:
                    self.wfile.write(b"x")
                except OSError:  # the reader has gone, as it should
                    return
                time.sleep(0.05)
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/picture.png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    path.write_bytes(BYTES)
    return path


@pytest.fixture(scope="module")
def processor() -> CasaProcessor:
    return CasaProcessor(build_tokenizer(["what is this"] * 3, 300))


VALUES: dict[str, Any] = {
    "bytes": BYTES,
    "a Pillow image": PILImage.fromarray(RGB),
    "an array": RGB,
    "a tensor, channels last": TENSOR,
    "a tensor, channels first": TENSOR.permute(2, 0, 1),
    "a tensor of 0 to 1": TENSOR.float() / 255,
    "a half-precision tensor with a gradient": (TENSOR.permute(2, 0, 1).double() / 255).requires_grad_(),
    "a data URL": DATA_URL,
    "a data URL in capitals": DATA_URL.replace("data:", "DATA:"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_every_kind_gives_its_pixels(name: str):
    assert np.array_equal(picture_to_rgb(VALUES[name], "it"), RGB)


def test_paths_and_urls_give_the_files_pixels(file: Path, site: str):
    spaced = f"file://{str(file).replace(' ', '%20')}"
    for source in (file, str(file), spaced, f"{site}/picture.png?size=8", f"{site}/moved"):
        assert np.array_equal(picture_to_rgb(source, "it"), RGB), source


def test_a_part_may_spell_its_picture_in_any_way_of_transformers(
    processor: CasaProcessor, file: Path, site: str
):
    parts = [
        {"type": "image", "image": BYTES},
        {"type": "image", "image": str(file)},
        {"type": "image", "url": str(file)},
        {"type": "image", "url": DATA_URL},
        {"type": "image", "url": f"{site}/picture.png"},
        {"type": "image", "path": str(file)},
        {"type": "image", "path": file},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": BASE64.encode()},
        {"type": "image", "base64": DATA_URL},
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
    ]
    expected = processor("what", images=RGB)
    for part in parts:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "what"}]}]
        for found in (
            processor(messages),
            processor.apply_chat_template(messages, add_generation_prompt=True),
        ):
            assert torch.equal(found["pixel_values"], expected["pixel_values"]), part
            assert torch.equal(found["input_ids"], expected["input_ids"])
    for source in (str(file), file, DATA_URL, TENSOR):
        assert torch.equal(processor("what", images=source)["pixel_values"], expected["pixel_values"])


REFUSED: dict[str, tuple[Any, str]] = {
    "a file that is not there": ("/nowhere/x.png", "it: there is no file '/nowhere/x.png'"),
    "a folder": (str(ROOT), "is a folder"),
    "an empty text": ("", "is a folder"),
    "a device": ("/dev/zero", "there is no file '/dev/zero'"),
    "raw base64 as a path": (BASE64 * 20, "it: the(re is no)? file"),
    "a text with a NUL": ("a\0b", "it: the(re is no)? file"),
    "another scheme": ("s3://bucket/x.png", "URL of scheme 's3'"),
    "another machine's file": ("file://server/x.png", "file URL of the host 'server'"),
    "a server that is not there": ("http://127.0.0.1:9/x.png", "http://127.0.0.1:9/x.png cannot be fetched"),
    "no URL at all": ("http://", "cannot be fetched"),
    "a port that is none": ("http://127.0.0.1:none/x", "cannot be fetched"),
    "a number": (7, "is of type int"),
    "a list": ([RGB], "is of type list"),
    "several pictures in a tensor": (torch.zeros(2, 3, 8, 8), "holds one picture"),
    "a tensor of one channel": (torch.zeros(1, 8, 8), "holds one picture"),
    "a tensor with two axes of three": (torch.zeros(3, 8, 3), "Both its first and its last axis"),
    "normalised pixels": (torch.full((3, 8, 8), -1.0), "with values from -1 to -1"),
    "pixels that are no numbers": (torch.full((3, 8, 8), torch.nan), "with values from nan to nan"),
    "pixels of integers": (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8 from 0 to 255"),
    "damaged bytes": (BYTES[:40], "^it cannot be read as a picture"),
    "no picture's bytes": (b"nothing of the kind", r"^it cannot be read as a picture.\n.*not an image"),
    "a damaged data URL": (
        "data:image/png;base64,???",
        r"^it cannot be read as a picture.\n.*The data URI cannot be read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(name: str):
    source, words = REFUSED[name]
    with pytest.raises((DataError, MediaError), match=words) as refused:
        picture_to_rgb(source, "it")
    error: CasaError = refused.value
    assert error.why
    assert error.remedy


def test_fetching_ends_at_a_status_a_size_and_a_time(site: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="answered with status 404"):
        picture_to_rgb(f"{site}/gone", "it")
    monkeypatch.setattr(picture_sources, "MAX_FILE_BYTES", 4000)
    with pytest.raises(DataError, match="larger than 4,000 bytes"):
        picture_to_rgb(f"{site}/large", "it")
    monkeypatch.setattr(picture_sources, "FETCH_SECONDS", 0.4)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"took longer than 0.4 s"):
        picture_to_rgb(f"{site}/slow", "it")
    assert time.monotonic() - began < 5


def test_a_file_that_is_too_large_or_forbidden_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", forbidden)
        with pytest.raises(DataError, match=r"cannot be read(.|\n)*Permission denied"):
            picture_to_rgb(file, "it")
    monkeypatch.setattr(picture_sources, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match=f"has {len(BYTES):,} bytes"):
        picture_to_rgb(file, "it")


def test_an_error_shows_no_password_and_no_signature(site: str):
    secret = site.replace("http://", "http://me:hush@") + "/gone?signature=hush"
    with pytest.raises(DataError) as refused:
        picture_to_rgb(secret, "it")
    assert "hush" not in str(refused.value)


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "two pictures": ({"type": "image", "url": "a", "path": "b"}, "twice, as 'url' and 'path'"),
    "no URL": ({"type": "image_url"}, "without a URL"),
    "an empty image_url": ({"type": "image_url", "image_url": {}}, "'image_url' of it is of type NoneType"),
    "a URL that is no text": ({"type": "image", "url": 3}, "'url' of it is of type int"),
    "a path that is no text": ({"type": "image", "path": b"x"}, "'path' of it is of type bytes"),
    "base64 that is none": (
        {"type": "image", "base64": "?"},
        r"^it cannot be read as a picture.\n.*The data URI",
    ),
    "pixels as base64": ({"type": "image", "base64": RGB}, "'base64' of it is of type ndarray"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_spells_no_one_picture_is_refused(name: str):
    part, words = PARTS[name]
    with pytest.raises(CasaError, match=words):
        picture_of_part(part, "it")


def test_a_path_key_is_never_fetched():
    with pytest.raises(DataError, match="there is no file"):
        picture_to_rgb(picture_of_part({"type": "image", "path": "http://127.0.0.1:9/x"}, "it"), "it")


def test_a_video_is_refused_with_what_to_pass_instead(processor: CasaProcessor):
    messages = [{"role": "user", "content": [{"type": "video", "path": "/tmp/x.mp4"}]}]
    with pytest.raises(DataError, match=r"messages\[0\].content\[0\] is a video") as refused:
        processor.apply_chat_template(messages)
    assert "Sample" in refused.value.remedy


def test_the_endpoint_and_the_engine_never_pass_a_requests_strings_here():
    """Paths and URLs are opened only where a user calls the processor: samples there hold bytes."""
    reads = {"CasaProcessor.__call__": "processor", "apply_chat_template": "apply_chat_template"}
    for folder in ("serve", "casa_core/engine"):
        for module in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(module.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").rpartition(".")[2] not in (
                        "picture_sources",
                        "processor_inputs",
                        "image_processor",
                    ), module
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    assert name not in reads.values(), f"{module}:{node.lineno}"


def test_the_image_side_alone_gives_the_same_patches(processor: CasaProcessor):
    whole = processor("what", images=[RGB, picture(8, 16, 16)])
    alone = partial(processor.image_processor, return_tensors="pt")([BYTES, picture(8, 16, 16)])
    assert set(alone.keys()) == {"pixel_values", "image_grid_thw"}
    for name in alone:
        assert torch.equal(alone[name], whole[name])
    assert processor.image_processor.to_dict()["max_side"] == processor.max_side
