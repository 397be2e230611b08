"""The deploy stage as it really runs: a Ray job that leaves a running endpoint behind."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.job_submission import JobStatus, JobSubmissionClient

from infra import caption_client
from infra.local_ray import RaySession
from pipelines.dag.context import StageContext
from pipelines.data.store.rows import CLEAN_SCHEMA
from pipelines.data.store.shard_writing import write_json, write_shard
from pipelines.deploy import run as deploy
from pipelines.recipe.model import Deploy
from tests.support.serve.checkpoint import write_checkpoint
from tests.support.serve.server import picture, question, write_clip

MODEL = "casa-small"
JOB = """
import json, sys
from pathlib import Path
from pipelines.deploy import run as deploy
from pipelines.dag.context import StageContext

fields = json.loads(Path(sys.argv[1]).read_text())
fields["inputs"] = {role: Path(path) for role, path in fields["inputs"].items()}
print(json.dumps(deploy.run_stage(StageContext(**{**fields, "output": Path(fields["output"])}))))
"""


def clean_artifact(folder: Path, clips: list[bytes]) -> Path:
    """Held-out rows: one still picture, then the clips."""

    def row(name: str, kind: str, data: bytes, parts: list[dict[str, Any]]) -> dict[str, Any]:
        media = [{"kind": kind, "bytes": data, "width": 64, "height": 64, "sha256": ""}]
        return {"sample_id": name, "source": "live", "parts": parts, "media": media, "meta": "{}"}

    def text(role: str, words: str) -> dict[str, Any]:
        nothing = {"media": 0, "timestamp": None}
        return {"kind": "text", "role": role, "text": words, "trained": role == "assistant", **nothing}

    still = row("picture", "image", picture(), [text("user", "what is this"), text("assistant", "red")])
    rows = [still] + [
        row(f"clip {i}", "video", data, [text("user", f"query {i}")]) for i, data in enumerate(clips)
    ]
    folder.mkdir(parents=True)
    splits = {"train": rows[:1], "test": rows}
    for split, content in splits.items():
        write_shard(folder / f"{split}-00000.arrow", CLEAN_SCHEMA, content)
    card = {
        split: {"rows": len(kept), "shards": [{"file": f"{split}-00000.arrow", "rows": len(kept)}]}
        for split, kept in splits.items()
    }
    write_json(folder / "card.json", {"splits": card})
    return folder


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    store = tmp_path_factory.mktemp("store")
    write_checkpoint(store / "train" / "model", ["what colour is this red green blue"])
    clips = [write_clip(store / f"{i}.mp4", ["red", "blue"]).read_bytes() for i in range(5)]
    clean = clean_artifact(store / "clean", clips)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return StageContext(
        name="deploy",
        settings={"deploy": Deploy(model_name=MODEL, max_new_tokens=8).model_dump(mode="json")},
        placement={
            "serve": {"host": "127.0.0.1", "port": port, "log": "json"},
            "ray": {"address": "local"},
        },
        output=store / "deploy",
        inputs={"train": store / "train", "live": clean},
        manifests={"train": {"fingerprint": "t" * 16}},
        fingerprint="d" * 16,
    )


@pytest.fixture(scope="module")
def summary(
    ray_head: RaySession, context: StageContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict]:
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)
    fields = {name: value for name, value in asdict(context).items() if name != "progress"}
    (folder / "context.json").write_text(json.dumps(fields, default=str))
    jobs = JobSubmissionClient(ray_head.address)
    command = shlex.join([sys.executable, str(folder / "job.py"), str(folder / "context.json")])
    job = jobs.submit_job(entrypoint=command)
    while not (status := jobs.get_job_status(job)).is_terminal():
        time.sleep(0.2)
    assert status == JobStatus.SUCCEEDED, jobs.get_job_logs(job)
    yield json.loads(jobs.get_job_logs(job).strip().splitlines()[-1])
    ServeSubmissionClient(ray_head.address).delete_applications()  # the head is shared with other tests


def test_the_endpoint_outlives_its_job_and_is_what_was_asked_for(
    summary: dict[str, Any], context: StageContext
):
    assert summary == deploy.check(context.placement, context.settings, context.fingerprint)
    assert deploy.check(context.placement, context.settings, "another") is None
    health = httpx.get(f"{summary['url']}/healthz").json()
    assert (health["model"], health["checkpoint"]) == (MODEL, "t" * 16)


def test_it_answers_with_the_trained_weights_and_captions_its_own_demo_clips(
    summary: dict[str, Any], tmp_path: Path
):
    client = openai.OpenAI(base_url=f"{summary['url']}/v1", api_key="unused", max_retries=0)
    answer = client.chat.completions.create(model=MODEL, messages=question("what colour is this", picture()))
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    clips = httpx.get(f"{summary['url']}/demo/clips").json()["clips"]
    assert [clip["query"] for clip in clips] == [f"query {i}" for i in range(4)]
    assert [clip["title"] for clip in clips] == [f"Query {i}" for i in range(4)]
    (tmp_path / "clip.mp4").write_bytes(httpx.get(summary["url"] + clips[0]["url"]).content)
    events = list(caption_client.caption(summary["url"], tmp_path / "clip.mp4", query=clips[0]["query"]))
    assert [event["timestamp"] for event in events[:-1]] == [0.0, 0.5, 1.0, 1.5]
    assert {event["type"] for event in events[:-1]} == {"caption"}
