"""Folders as people really keep data, a few records each: the rows of the table in ``docs/data.md``."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.data.corpus import PICTURE, finevision_row, write_finevision, write_jsonl
from tests.support.data.layouts import video_item, write_array, write_tar
from tests.support.data.media import counting_video

VQA = {"image": "images/0.png", "texts": [{"user": "what is it?", "assistant": "a ramp"}]}
CAPTION = {"image": "images/0.png", "caption": "a ramp"}


@dataclass(frozen=True)
class Kept:
    """A way to keep data.

    Attributes:
        what: In words, for the table.
        reader: The reader that it is given to.
        write: Writes the folder.
        advice: What the table adds: why something is not read, and what to do.
    """

    what: str
    reader: str
    write: Callable[[Path], None]
    advice: str = ""


def put(root: Path, files: Mapping[str, bytes | str | Sequence[Any]]) -> None:
    """Writes files: bytes and text as they are, a list as JSON lines or, for ``.json``, as one array."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".json"):
            write_array(path, content)
        else:
            write_jsonl(path, content, seeks=False)


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    """A zip archive, packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _nested(root: Path) -> None:
    put(root, {"a/b/c.jsonl": [{**CAPTION, "image": "../../images/0.png"}], "images/0.png": PICTURE})
    put(root, {"a/notes.md": "# mine", "a/old/d.ndjson": [CAPTION]})
    write_tar(root / "shards" / "0.tar", [("k.png", PICTURE), ("k.txt", b"a ramp")])


def _litter(root: Path) -> None:
    put(root, {"a.jsonl": [CAPTION], "images/0.png": PICTURE})
    names = (".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/._a.jsonl", "@eaDir/a.jsonl", "a.jsonl~")
    put(root, {name: [CAPTION] for name in (*names, ".cache/huggingface/b.jsonl")})
    put(root, {"Thumbs.db": b"x", "desktop.ini": b"x", "images/._0.png": b"x"})


def _windows(root: Path) -> None:
    lines = [json.dumps({**CAPTION, "image": "images\\0.png"})] * 2
    put(
        root,
        {"train.jsonl": b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode(), "images/0.png": PICTURE},
    )
    put(root, {"exported.jsonl": "\r\n".join(lines).encode("utf-16")})


def _snapshot(root: Path) -> None:
    snapshot = root / "snapshots" / "0a1b2c" / "ramps"
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet")):
        write_finevision(root / "blobs" / f"{number}f00d", [finevision_row()] * (number + 1))
        (snapshot / name).symlink_to(f"../../../blobs/{number}f00d")
    (root / "latest").symlink_to("snapshots/0a1b2c")


def _captions_beside(root: Path) -> None:
    put(root, {f"{n}.png": PICTURE for n in range(3)} | {f"{n}.txt": "a ramp" for n in range(3)})


def _img2dataset(root: Path) -> None:
    members = [(f"00000000{n}.{kind}", data) for n in range(2) for kind, data in _sample(n).items()]
    write_tar(root / "00000.tar", members)
    table = pa.table({"url": ["https://example.org/0.jpg"] * 2, "caption": ["a ramp"] * 2})
    pq.write_table(table, root / "00000.parquet")
    put(root, {"00000_stats.json": '{"count": 2}'})


def _sample(number: int) -> dict[str, bytes]:
    about = {"caption": "a ramp", "url": "https://example.org/0.jpg", "key": f"00000000{number}"}
    return {"jpg": PICTURE, "txt": b"a ramp", "json": json.dumps(about).encode()}


def _img2dataset_files(root: Path) -> None:
    put(root, {f"00000/00000000{n}.{kind}": data for n in range(2) for kind, data in _sample(n).items()})


def _mmc4(root: Path) -> None:
    document = {
        "text_list": ["A ramp.", "It rises."],
        "image_info": [{"image_name": "0.png", "matched_text_index": 0}],
    }
    put(root, {"docs_no_face_shard_0_v2.jsonl": [document] * 2, "images/0.png": PICTURE})


def _concatenated(root: Path) -> None:
    one, two = (
        write_tar(root / f"{n}.tar", [(f"{n}.png", PICTURE), (f"{n}.txt", b"a ramp")]) for n in range(2)
    )
    one.write_bytes(one.read_bytes() + two.read_bytes())
    two.unlink()


def _video_archives(root: Path) -> None:
    config = root / "0_30_s_academic_v0_1"
    video = counting_video(_made(root / "clip.mp4"))
    (root / "clip.mp4").unlink()
    write_array(config / "0_30_s_academic_v0_1_cap_processed.json", [video_item("academic/a.mp4")])
    write_array(config / "0_30_s_academic_oe_v0_1_qa_processed.json", [video_item("academic/b.mp4")])
    write_tar(config / "0_30_s_academic_v0_1_videos_1.tar", [("academic/a.mp4", video)])
    put(config, {"0_30_s_academic_v0_1_videos_2.zip": zipped({"academic/b.mp4": video})})


def _packed_video_archives(root: Path) -> None:
    _video_archives(root)
    path = root / "0_30_s_academic_v0_1" / "0_30_s_academic_v0_1_videos_1.tar"
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _pointers(root: Path) -> None:
    write_finevision(root / "ramps" / "train-0.parquet", [finevision_row()] * 2)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 8123456\n"
    put(root, {"ramps/train-1.parquet": pointer})


def _splits(root: Path) -> None:
    for name in ("train-0.parquet", "validation-0.parquet", "test/part-0.parquet"):
        write_finevision(root / name, [finevision_row()])
    put(
        root,
        {f"{name}.jsonl": [CAPTION] for name in ("val", "dev", "testimonials")} | {"images/0.png": PICTURE},
    )


def _media_archives(root: Path) -> None:
    put(root, {"train.jsonl": [CAPTION, {**CAPTION, "image": "more/1.png"}]})
    write_tar(root / "images.tar", [("images/0.png", PICTURE)])
    put(root, {"more.zip": zipped({"1.png": PICTURE})})


PHOTOS = {"images/0.png": PICTURE}
FOLDERS = (
    Kept(
        "JSONL and a folder of pictures",
        "image_text",
        lambda root: put(root, {"train.jsonl": [VQA, CAPTION], "val.jsonl": [VQA], **PHOTOS}),
    ),
    Kept("nested folders of JSONL, NDJSON and tar", "image_text", _nested),
    Kept(
        "with what Jupyter, macOS, a NAS, editors and downloads leave",
        "image_text",
        _litter,
        "hidden names are skipped",
    ),
    Kept(
        "from Windows: marks, CRLF, blank lines, `\\`, one file in UTF-16",
        "image_text",
        _windows,
        "convert it with `iconv`",
    ),
    Kept(
        "one big JSON array",
        "image_text",
        lambda root: put(root, {"annotations.json": [VQA, CAPTION], **PHOTOS}),
    ),
    Kept(
        "COCO: one JSON object of lists",
        "image_text",
        lambda root: put(root, {"instances.json": '{"images": [], "annotations": []}', **PHOTOS}),
        "write a line for each picture",
    ),
    Kept(
        "the hub's cache: links into `blobs`", "finevision", _snapshot, "a folder reached twice is read once"
    ),
    Kept(
        "pictures beside `.txt` captions of the same name",
        "image_text",
        _captions_beside,
        "`tar --sort=name -cf photos.tar .` makes it a WebDataset",
    ),
    Kept(
        "imagefolder with `metadata.jsonl`",
        "image_text",
        lambda root: put(
            root, {"metadata.jsonl": [{"file_name": "0.png", "text": "a ramp"}], "0.png": PICTURE}
        ),
        "",
    ),
    Kept(
        "imagefolder with `metadata.csv`",
        "image_text",
        lambda root: put(root, {"metadata.csv": "file_name,text\n0.png,a ramp\n", "0.png": PICTURE}),
        "write it as JSONL or parquet",
    ),
    Kept("img2dataset, WebDataset output", "image_text", _img2dataset, "the parquet is the tar's table"),
    Kept("img2dataset, files output", "image_text", _img2dataset_files, "as for captions beside pictures"),
    Kept("MMC4: interleaved documents", "image_text", _mmc4, "write `messages` with pictures as parts"),
    Kept(
        "a Kaggle zip of pictures and CSV",
        "image_text",
        lambda root: put(root, {"archive.zip": zipped({"train.csv": "a,b", "images/0.png": PICTURE})}),
        "write the table as JSONL or parquet",
    ),
    Kept(
        "a zip of JSONL and pictures",
        "image_text",
        lambda root: put(
            root, {"photos.zip": zipped({"train.jsonl": json.dumps(CAPTION), "images/0.png": PICTURE})}
        ),
    ),
    Kept("JSONL whose pictures lie in a tar and a zip", "image_text", _media_archives),
    Kept(
        "packed lines and packed WebDataset",
        "image_text",
        lambda root: put(
            root, {"a.jsonl.gz": gzip.compress(json.dumps(CAPTION).encode()), "b.tar.gz": b"x", **PHOTOS}
        ),
        "`gunzip b.tar.gz`: pictures do not shrink by it",
    ),
    Kept("tars joined by `cat`", "image_text", _concatenated),
    Kept("LLaVA-Video with its videos in tar and zip", "llava_video", _video_archives),
    Kept(
        "LLaVA-Video with a `.tar.gz`",
        "llava_video",
        _packed_video_archives,
        "`gunzip` it once: gzip has no index",
    ),
    Kept("a clone without Git LFS", "finevision", _pointers, "counts as a lost file; `git lfs pull`"),
    Kept("train, validation, val, dev, test and testimonials", "image_text", _splits),
)
