"""What the live page offers is taken from the held-out data, under names that say what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.data.store.rows import CLEAN_SCHEMA
from pipelines.data.store.shard_writing import write_json, write_shard
from pipelines.deploy.demo import TITLE_CHARACTERS, copy_demo, title_of
from tests.support.serve.server import picture, write_clip


def text(role: str, words: str) -> dict[str, Any]:
    trained = role == "assistant"
    return {"kind": "text", "role": role, "text": words, "trained": trained, "media": 0, "timestamp": None}


def frame(time: float | None) -> dict[str, Any]:
    return {"kind": "image", "role": "user", "text": "", "trained": False, "media": 0, "timestamp": time}


def row(kind: str, data: bytes, *parts: dict[str, Any]) -> dict[str, Any]:
    media = [{"kind": kind, "bytes": data, "width": 64, "height": 64, "sha256": ""}]
    return {"sample_id": "", "source": "", "parts": list(parts), "media": media, "meta": "{}"}


def live(*words: str) -> dict[str, Any]:
    frames = [
        part for number, said in enumerate(words) for part in (frame(number / 2), text("assistant", said))
    ]
    return row("video", b"", text("user", "say what you see"), *frames)


def artifact(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    write_shard(folder / "test-00000.arrow", CLEAN_SCHEMA, rows)
    write_json(
        folder / "card.json",
        {
            "splits": {
                "test": {"rows": len(rows), "shards": [{"file": "test-00000.arrow", "rows": len(rows)}]}
            }
        },
    )
    return folder


def test_a_title_is_what_is_said_in_the_clip_in_phrases():
    assert title_of(live("a green", "rectangle", "", "a red", "circle")) == "A green rectangle · a red circle"


def test_a_title_is_the_question_where_a_video_is_asked_about():
    answered = [frame(0.0), frame(0.5), text("user", "who wins the race?"), text("assistant", "the dog")]
    assert title_of(row("video", b"", *answered)) == "Who wins the race?"
    assert title_of(row("video", b"", frame(0.0))) == ""


def test_a_long_title_is_cut_between_words():
    title = title_of(live(*["lorem ipsum"] * 40))
    assert len(title) <= TITLE_CHARACTERS + 1
    assert title.endswith((" lorem…", " ipsum…"))


def test_pictures_come_with_different_questions_of_the_held_out_data(tmp_path: Path):
    def asked(question: str, colour: str) -> dict[str, Any]:
        return row("image", picture(colour), frame(None), text("user", question), text("assistant", "red"))

    questions = [
        "what shape is it?",
        "what shape is it?",
        "x" * 500,
        "is it red?",
        "how large?",
        "where?",
        "why?",
    ]
    rows = [asked(question, colour) for question, colour in zip(questions, ["red", "blue"] * 4, strict=False)]
    video = write_clip(tmp_path / "clip.mp4", ["red"]).read_bytes()
    rows.append(row("video", video, frame(0.0), text("user", "what happens?")))
    copy_demo([artifact(tmp_path / "clean", rows)], tmp_path / "demo")
    pictures = json.loads((tmp_path / "demo" / "pictures.json").read_text())
    assert [entry["question"] for entry in pictures.values()] == [
        "what shape is it?",
        "is it red?",
        "how large?",
        "where?",
    ]
    assert (tmp_path / "demo" / "picture-1.png").read_bytes() == picture("red")
    clips = json.loads((tmp_path / "demo" / "clips.json").read_text())
    assert clips == {"clip-1.mp4": {"title": "What happens?", "query": "what happens?"}}
    assert (tmp_path / "demo" / "clip-1.mp4").read_bytes() == video


def test_data_without_pictures_or_videos_offers_none(tmp_path: Path):
    copy_demo([], tmp_path / "demo")
    assert json.loads((tmp_path / "demo" / "clips.json").read_text()) == {}
    assert json.loads((tmp_path / "demo" / "pictures.json").read_text()) == {}
