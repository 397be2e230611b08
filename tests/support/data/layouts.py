"""Small corpora in every layout that a reader knows, with every oddity their documentation names."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.data.corpus import PICTURE, finevision_row, live_record, write_finevision, write_jsonl
from tests.support.data.media import counting_video

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([(name, pa.string()) for name in ("role", "content", "from", "value")])
ONEVISION_SCHEMA = pa.schema(
    [("id", pa.string()), ("image", IMAGE), ("conversations", pa.list_(TURN)), ("data_source", pa.string())]
)
MIDTRAINING_SCHEMA = pa.schema([("id", pa.string()), ("image", IMAGE), ("caption", pa.string())])
DOCMATIX_TURN = pa.struct([(name, pa.string()) for name in ("user", "assistant", "source")])
DOCMATIX_SCHEMA = pa.schema([("images", pa.list_(IMAGE)), ("texts", pa.list_(DOCMATIX_TURN))])

Turns = Sequence[tuple[str, str | None]]


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, row_group_size: int = 1024
) -> Path:
    """A parquet file of rows; what a row leaves out is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [{name: row.get(name) for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=schema), path, row_group_size=row_group_size)
    return path


def image(data: bytes | None = PICTURE, path: str | None = "0.png") -> dict[str, Any]:
    """A value of an image column."""
    return {"bytes": data, "path": path}


ENCODINGS = {
    "role_content": ("role", "content", False),
    "from_value": ("from", "value", False),
    "role_content_beside_nulls": ("role", "content", True),
    "from_value_beside_nulls": ("from", "value", True),
}
"""The four encodings of a turn: its fields' names, and whether the other pair is there too, null."""


def encode_turns(turns: Turns, encoding: str = "from_value") -> list[dict[str, str | None]]:
    """Turns of ``(speaker, text)`` in one of ``ENCODINGS``."""
    who, what, nulls = ENCODINGS[encoding]
    empty: dict[str, str | None] = dict.fromkeys(("role", "content", "from", "value")) if nulls else {}
    return [{**empty, who: speaker, what: text} for speaker, text in turns]


ASKED: Turns = (("human", "<image>\nwhat is it?"), ("gpt", "a ramp"))


def onevision_row(
    turns: Turns = ASKED, encoding: str = "from_value", picture: Any = None, **columns: Any
) -> dict[str, Any]:
    """A row of LLaVA-OneVision-1.5-Instruct about ``PICTURE``, unless ``columns`` say otherwise."""
    row = {"id": "7", "image": picture or image(), "conversations": encode_turns(turns, encoding)}
    return {**row, "data_source": "ramps", **columns}


def write_onevision(path: Path, rows: Sequence[Mapping[str, Any]], encoding: str | None = None) -> Path:
    """A parquet file of such rows, its turns having the fields of ``encoding`` only, or all four."""
    schema = ONEVISION_SCHEMA
    if encoding is not None and not ENCODINGS[encoding][2]:
        fields = pa.struct([(name, pa.string()) for name in ENCODINGS[encoding][:2]])
        schema = schema.set(2, pa.field("conversations", pa.list_(fields)))
    return write_rows(path, rows, schema)


def video_item(video: str = "clips/a.mp4", turns: Turns | None = None, **fields: Any) -> dict[str, Any]:
    """An item of LLaVA-Video-178K."""
    turns = (("human", "<image>\nWhat happens?"), ("gpt", "It brightens.")) if turns is None else turns
    item = {"id": "v0", "conversations": encode_turns(turns), "data_source": "0_30_s", "video": video}
    return {**item, **fields}


def write_array(path: Path, items: Sequence[Any], ascii_only: bool = True) -> Path:
    """A JSON file: one array, indented as the published ones are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=4, ensure_ascii=ascii_only), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A WebDataset shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def noisy_video(
    *,
    frames: int,
    rate: Fraction = Fraction(30),
    codec: str = "libx264",
    container: str = "mp4",
    side: int = 64,
    **options: str,
) -> bytes:
    """A video that takes space: each frame is noise moved on, marked with its number; with B-frames."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)
    settings = {"crf": "20", "preset": "ultrafast", "g": "24", "bf": "2", **options}
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(
            codec, rate=rate, options=settings if codec == "libx264" else {"g": "24"}
        )
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for number in range(frames):
            pixels = np.roll(noise, 3 * number, axis=1)
            pixels[:8] = number % 256
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def write_every_layout(root: Path) -> dict[str, list[str | None]]:
    """A folder for each reader, named after it, with good records and every documented oddity.

    Returns:
        Reader → what becomes of each record, in reading order: None if it is good, otherwise the reason.
    """
    (root / "live_whisperx" / "clips").mkdir(parents=True)
    video = counting_video(root / "live_whisperx" / "clips" / "a.mp4")
    return {
        "finevision": _finevision(root / "finevision"),
        "llava_onevision": _onevision(root / "llava_onevision"),
        "llava_midtraining": _midtraining(root / "llava_midtraining"),
        "llava_video": _video(root / "llava_video", video),
        "live_whisperx": _live(root / "live_whisperx"),
        "image_text": _image_text(root / "image_text"),
    }


def _finevision(root: Path) -> list[str | None]:
    rows = [
        finevision_row(relevance_ratings=[5], relevance_min=5),
        finevision_row(relevance_ratings=None),
        finevision_row(images=[PICTURE, PICTURE]),
        finevision_row(images=[]),
        finevision_row(turns=[("<image>", "a ramp")], images=[]),
        finevision_row(turns=None),
        finevision_row(turns=[(None, "a ramp")]),
    ]
    write_finevision(root / "ramps" / "train-00000-of-00001.parquet", rows)
    pages = {"texts": [{"user": "what?", "assistant": "a page", "source": "PDF key 7"}]}
    write_rows(root / "scans" / "train-0.parquet", [{"images": [image(), image()], **pages}], DOCMATIX_SCHEMA)
    return [None, None, None, None, "missing_image", "missing_text", "missing_text", None]


def _onevision(root: Path) -> list[str | None]:
    mixed = [onevision_row(encoding=encoding) for encoding in ENCODINGS if ENCODINGS[encoding][2]]
    bare = [("human", "what is 2 + 2?"), ("gpt", "4")]
    mixed += [onevision_row(bare, image=None), onevision_row(image=None), onevision_row([("gpt", "hello")])]
    write_onevision(root / "gqa-part-01-of-10" / "train-0.parquet", mixed)
    for encoding in ("role_content", "from_value"):
        write_onevision(
            root / f"{encoding}" / "train-0.parquet", [onevision_row(encoding=encoding)], encoding
        )
    # Folders in the order of their names: from_value, gqa-part-01-of-10, role_content.
    return [None, None, None, None, "missing_image", "bad_turns", None]


def _midtraining(root: Path) -> list[str | None]:
    rows = [
        {"id": "laion/00/17", "image": image(), "caption": "a ramp"},
        {"id": "laion/00/17", "image": image(), "caption": "the same id"},
        {"id": "laion/00/18", "image": image(), "caption": None},
        {"id": "laion/00/19", "image": None, "caption": "of nothing"},
    ]
    write_rows(root / "laion" / "0.parquet", rows, MIDTRAINING_SCHEMA)
    return [None, None, "missing_text", "missing_image"]


def _video(root: Path, video: bytes) -> list[str | None]:
    config = root / "0_30_s_academic_v0_1"
    (config / "clips").mkdir(parents=True)
    (config / "clips" / "a.mp4").write_bytes(video)
    (config / "clips" / "empty.mp4").write_bytes(b"")
    longer = (*video_item()["conversations"], *encode_turns([("human", "And then?"), ("gpt", "It ends.")]))
    items = [video_item(), video_item(conversations=list(longer)), video_item("clips/gone.mp4")]
    write_array(config / "0_30_s_academic_v0_1_cap_processed.json", items)
    write_array(config / "0_30_s_academic_mc_v0_1_qa_processed.json", [video_item("clips/empty.mp4")])
    write_array(config / "0_30_s_academic_oe_v0_1_qa_processed.json", [video_item()], ascii_only=False)
    (config / "dataset_info.json").write_text("{}")
    # Files in the order of their names: multiple choice, open-ended, caption.
    return ["empty_file", None, None, None, "missing_video"]


def _live(root: Path) -> list[str | None]:
    bare = live_record("clips/a.mp4")
    for name in ("previous", "title"):
        del bare[0]["content"][1][name]
    records = [
        live_record("clips/a.mp4", title="Größe", category="Sports", previous="before"),
        bare,
        live_record("clips/a.mp4", start=2.0, end=3.5, words=[(2.1, 2.4, "and")]),
        live_record("clips/a.mp4", words=[(9.0, 9.4, "late")]),
        "{cut",
    ]
    write_jsonl(root / "train.jsonl", records, ascii_only=False)
    return [None, None, None, "word_outside_clip", "bad_json"]


def _image_text(root: Path) -> list[str | None]:
    root.mkdir(parents=True)
    (root / "0.png").write_bytes(PICTURE)
    lines = [
        {"image": "0.png", "texts": [{"user": "what is it?", "assistant": "a ramp"}]},
        {"image": "gone.png", "caption": "a ramp"},
    ]
    write_jsonl(root / "a.jsonl", lines, seeks=False)
    rows = [{"image": image(), "caption": "a ramp"}]
    write_rows(root / "b.parquet", rows, pa.schema([("image", IMAGE), ("caption", pa.string())]))
    write_tar(root / "c.tar", [("k0.png", PICTURE), ("k0.txt", b"a ramp"), ("k1.txt", b"")])
    return [None, "missing_image", None, None, "missing_text"]
