"""Two hundred records that cannot be used, each with the reason that must be found, and a few that can."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.data.media import encode, png_claiming, scene

MAX_PIXELS = 400_000
"""What the source of these records allows, so that a bomb need not be large."""
ASKED = [{"user": "what is it?", "assistant": "a ramp"}]
_CUT = ("PNG", "JPEG", "progressive", "GIF", "WEBP", "TIFF", "BMP", "CMYK")


@dataclass(frozen=True)
class Case:
    """A line of the corpus: a record with a picture file of its own, or a line as it is.

    Attributes:
        name: Unique; the record's id and its file's name.
        reason: Why it must be set aside; None where it must be kept.
        data: Of its picture.
        line: Instead of a record that names the picture.
    """

    name: str
    reason: str | None
    data: bytes = b""
    line: bytes | None = None


def cases() -> list[Case]:
    """All of them, in a fixed order, good ones in between."""
    bad = [*_truncated(), *_damaged(), *_no_pictures(), *_bombs(), *_lines()]
    good = list(_oddities())
    for at, case in enumerate(good):
        bad.insert((at + 1) * len(bad) // (len(good) + 1), case)
    return bad


def write_corpus(folder: Path, found: list[Case]) -> None:
    """The records as ``train-0.jsonl`` with their picture files, and three broken parquet files beside it."""
    lines = []
    (folder / "files").mkdir(parents=True)
    for case in found:
        if case.line is None:
            (folder / "files" / case.name).write_bytes(case.data)
            record = {"id": case.name, "image": f"files/{case.name}", "texts": ASKED}
            lines.append(json.dumps(record).encode())
        else:
            lines.append(case.line)
    (folder / "train-0.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    table = pa.Table.from_pylist(
        [{"id": f"row {n}", "image": _picture("PNG", n), "texts": ASKED} for n in range(10)]
    )
    whole = io.BytesIO()
    pq.write_table(table, whole, row_group_size=5, compression="none", use_dictionary=False)
    data = whole.getvalue()
    (folder / "train-1.parquet").write_bytes(data[: len(data) - 20])  # no footer
    (folder / "train-2.parquet").write_bytes(b"PAR1 and nothing more")
    (folder / "train-3.parquet").write_bytes(_with_broken_page(data))


def _with_broken_page(data: bytes) -> bytes:
    """The header of the second row group's first page is overwritten; the first row group stays whole."""
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1)
    page = group.column(0).data_page_offset
    return data[:page] + b"\xff" * 32 + data[page + 32 :]


def _picture(kind: str, seed: int = 0) -> bytes:
    rgb = scene(48, 64)
    rgb[10:30, 10:50] += np.random.default_rng(seed).integers(0, 60, (20, 40, 3), dtype=np.uint8) % 5
    image = Image.fromarray(rgb)
    if kind == "progressive":
        return encode(image, "JPEG", progressive=True)
    if kind == "CMYK":
        return encode(image.convert("CMYK"), "JPEG")
    return encode(image, kind)


def _truncated() -> Iterator[Case]:
    for kind in _CUT:
        whole = _picture(kind)
        for percent in (2, 5, 10, 14, 18, 25, 33, 42, 50, 60, 70, 80, 90):
            length = max(12, len(whole) * percent // 100)
            yield Case(f"{kind} cut at {percent} %", "truncated_image", whole[:length])


def _damaged() -> Iterator[Case]:
    png = _picture("PNG")
    for at in (20, 29, 60, 200, len(png) // 2):
        flipped = bytearray(png)
        flipped[at] ^= 0xFF
        yield Case(f"PNG with byte {at} flipped", "truncated_image", bytes(flipped))
    for width, height in ((0, 10), (10, 0), (0, 0)):
        yield Case(f"PNG of {width} x {height}", "truncated_image", png_claiming(width, height))
    yield Case("PNG without pixels", "truncated_image", png_claiming(600, 600))
    jpeg = _picture("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    yield Case("JPEG of height 0", "truncated_image", jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :])
    yield Case("JPEG whose tables are gone", "truncated_image", jpeg[:2] + jpeg[jpeg.index(b"\xff\xda") :])
    yield Case("JPEG that ends with its header", "truncated_image", jpeg[: jpeg.index(b"\xff\xda")])


def _no_pictures() -> Iterator[Case]:
    for number in range(8):
        yield Case(f"empty {number}", "empty_file")
    others = {
        "a web page.png": b"<!DOCTYPE html><html>404 not found</html>",
        "text.jpg": b"this is no picture",
        "json.png": b'{"error": "expired"}',
        "pdf.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n(quit) run",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "zip.jpg": b"PK\x03\x04" + bytes(60),
        "gzip.png": b"\x1f\x8b\x08" + bytes(60),
        "zeros.png": bytes(500),
        "ones.jpg": b"\xff" * 2,
        "mp4.jpg": b"\0\0\0\x20ftypisom" + bytes(60),
        "lfs pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "shell.png": b"#!/bin/sh\nexit 1\n",
        "one byte.png": b"\x89",
    }
    for name, data in others.items():
        yield Case(name, "not_an_image", data)
    for number in range(10):
        noise = np.random.default_rng(number).integers(128, 256, 300, dtype=np.uint8).tobytes()
        yield Case(f"noise {number}", "not_an_image", b"\x01\xfe" + noise)
    png = _picture("PNG")
    for at in range(6):  # a signature with one wrong byte is none
        yield Case(f"signature wrong at {at}", "not_an_image", png[:at] + b"?" + png[at + 1 :])


def _bombs() -> Iterator[Case]:
    for width, height in (
        (50_000, 50_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (20_000, 20_000),
        (100_000, 9_000), (13_378, 13_377), (MAX_PIXELS, 2),
    ):  # fmt: skip
        yield Case(f"PNG that claims {width} x {height}", "decompression_bomb", png_claiming(width, height))
    yield Case("a flat PNG over the limit", "decompression_bomb", encode(Image.new("L", (700, 700)), "PNG"))
    yield Case("a flat JPEG over the limit", "decompression_bomb", encode(Image.new("L", (700, 700)), "JPEG"))
    yield Case(
        "a flat WebP over the limit", "decompression_bomb", encode(Image.new("RGB", (700, 700)), "WEBP")
    )
    gif, bmp, tiff = (_picture(kind) for kind in ("GIF", "BMP", "TIFF"))
    yield Case("GIF that claims 65535 x 65535", "decompression_bomb", gif[:6] + b"\xff" * 4 + gif[10:])
    claim = struct.pack("<ii", 40_000, 40_000)
    yield Case("BMP that claims 40000 x 40000", "decompression_bomb", bmp[:18] + claim + bmp[26:])
    width = tiff.index(struct.pack("<HHI", 256, 4, 1)) + 8  # the tag's value
    yield Case(
        "TIFF that claims to be wide",
        "decompression_bomb",
        tiff[:width] + b"\xff\xff\x0f\0" + tiff[width + 4 :],
    )
    text = zlib.compress(bytes(2 << 20))
    yield Case("PNG with a bomb for a text", "decompression_bomb", _png_with(b"zTXt", b"k\0\0" + text))


def _png_with(kind: bytes, data: bytes) -> bytes:
    """A picture with another chunk behind its header."""
    png = _picture("PNG")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def _lines() -> Iterator[Case]:
    def record(name: str, reason: str, **fields: Any) -> Case:
        return Case(name, reason, line=json.dumps({"id": name, **fields}).encode())

    broken = ['{"id": 1,', "[1, 2", "{'id': 1}", '{"id": "x"}}', "not json", '{"id": nope}', '"open']
    for number, text in enumerate(broken):
        yield Case(f"line {number}", "bad_json", line=text.encode())
    for number, text in enumerate(("[]", "17", '"text"', "null")):
        yield Case(f"value {number}", "bad_record", line=text.encode())
    marked = [{"user": "<image> what is it?", "assistant": "a ramp"}]
    for number in range(6):
        yield record(f"marker without image {number}", "missing_image", texts=marked)
    yield record("two markers", "missing_image", texts=marked * 2, images=[])
    for number in range(6):
        yield record(f"no such file {number}", "missing_image", image=f"files/gone-{number}.png", texts=ASKED)
    yield record("outside", "bad_path", image="../../etc/hostname", texts=ASKED)
    yield record("absolute", "bad_path", image="/etc/hostname", texts=ASKED)
    yield record("web", "remote_image", image="https://example.org/a.png", texts=ASKED)
    yield record("no turns", "missing_text", texts=[])
    yield record("null answer", "missing_text", texts=[{"user": "what?", "assistant": None}])


def _oddities() -> Iterator[Case]:
    """Unusual, and good: they must come through with their bytes unchanged."""
    rgb = Image.fromarray(scene())
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = (np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)
    grey = rgb.convert("L")
    yield Case("turned", None, encode(rgb, "JPEG", exif=turned))
    yield Case("cmyk", None, encode(rgb.convert("CMYK"), "JPEG"))
    yield Case("palette", None, encode(rgb.convert("P"), "PNG", transparency=3))
    yield Case("deep", None, encode(Image.fromarray(deep), "PNG"))
    yield Case("bits", None, encode(rgb.convert("1"), "PNG"))
    yield Case("grey with alpha", None, encode(rgb.convert("LA"), "PNG"))
    for file_format in ("GIF", "PNG", "WEBP"):
        yield Case(
            f"animated {file_format}",
            None,
            encode(grey, file_format, save_all=True, append_images=[grey.rotate(9)]),
        )
    yield Case("trailing bytes", None, _picture("JPEG") + b"and more" * 9)
    yield Case("one pixel", None, encode(Image.new("RGB", (1, 1)), "PNG"))
