"""Rendered pictures at realistic sizes: a corpus in FineVision's layout, and its pictures as single files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

ROWS_PER_GROUP = 100
ROWS_PER_FILE = 1000
_PNG_SHARE = 0.3


def make_corpus(folder: Path, pictures: int, repeats: int) -> None:
    """Writes ``files/`` and ``parquet/``; nothing where they are there already.

    Args:
        folder: Of the corpus; its name should tell the two numbers.
        pictures: Different pictures.
        repeats: How often each occurs in the parquet files, in another order each time.
    """
    if (folder / "done").exists():
        return
    for name in ("files", "parquet"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(2) as pool:
        data = pool.map(encoded_picture, range(pictures), chunksize=16)
    paths = picture_paths(folder, pictures)
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    order = stream_order(pictures, repeats)
    for start in range(0, len(order), ROWS_PER_FILE):
        rows = [_row(int(number), data[number]) for number in order[start : start + ROWS_PER_FILE]]
        name = f"train-{start // ROWS_PER_FILE:05d}.parquet"
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "parquet" / name, row_group_size=ROWS_PER_GROUP, compression="none")
    (folder / "done").touch()


def picture_paths(folder: Path, pictures: int) -> list[Path]:
    """The single files, by number."""
    return [folder / "files" / f"{number:05d}{_suffix(number)}" for number in range(pictures)]


def stream_order(pictures: int, repeats: int) -> np.ndarray:
    """Numbers of the pictures as the corpus has them, row after row; (pictures * repeats,)."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(pictures) for _ in range(repeats)])


def encoded_picture(number: int) -> bytes:
    """Discs on a soft ground, 300 to 1200 pixels a side: a JPEG with grain, or a smooth PNG."""
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(300, 1201, 2))
    coarse = rng.integers(40, 220, (height // 90 + 2, width // 90 + 2, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    for box, colour in _shapes(rng, width, height):
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    if _suffix(number) == ".png":
        return _encode(image, "PNG")
    grain = rng.normal(0, 4, (height, width, 1))
    grainy = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    progressive = number % 10 == 0
    return _encode(
        Image.fromarray(grainy), "JPEG", quality=int(rng.integers(75, 96)), progressive=progressive
    )


def _shapes(
    rng: np.random.Generator, width: int, height: int
) -> Iterator[tuple[tuple[int, int, int, int], tuple[int, int, int]]]:
    for _ in range(12):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        box = (left, top, left + int(rng.integers(20, 300)), top + int(rng.integers(20, 300)))
        yield box, (red, green, blue)


def _suffix(number: int) -> str:
    return ".png" if np.random.default_rng([1, number]).random() < _PNG_SHARE else ".jpg"


def _encode(image: Image.Image, file_format: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _row(number: int, data: bytes) -> dict[str, object]:
    return {
        "images": [{"bytes": data, "path": f"{number:05d}{_suffix(number)}"}],
        "texts": [{"user": f"What is in picture {number}?", "assistant": "Twelve discs on a soft ground."}],
        "source": "rendered",
    }
