"""The whole pipeline with its store on a real S3 server, behind a connection that fails again and again."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from infra import local_ray
from pipelines.dag import artifact
from pipelines.storage.host import session_folder
from pipelines.storage.uri import Folder
from tests.support import s3
from tests.support.dag import quickstart
from tests.support.s3 import S3Server, flaky

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4000)]
ON_DISK, ON_S3 = ({"where.serve.port": port} for port in ("18241", "18242"))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run in a folder that nothing disturbed."""
    store = tmp_path_factory.mktemp("on-disk")
    quickstart.run(store, ON_DISK)
    local_ray.stop(store / "session")
    return store


@pytest.fixture(scope="module")
def on_s3(
    s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Folder, Path, s3.Proxy]]:
    """A store on S3 whose run was killed during training, and continued; every tenth request failed.

    Gives the store without the failing connection, the folder the commands ran in, and the proxy.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    with s3.credentials(), flaky(s3_server, fail_every=10) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        direct = s3_server.folder("whole-store")
        store = proxy.through(direct)
        session = session_folder(store)
        try:
            quickstart.kill_during_training(store, 25, lambda runner: everything(runner, session), ON_S3)
            quickstart.run(store, ON_S3)
            yield direct, folder, proxy
        finally:
            local_ray.stop(session)


def everything(runner: int, session: Path) -> list[int]:
    """Process ids of the runner, the Ray head and the training workers."""
    head = local_ray.read_session(session)
    assert head is not None
    return [runner, head.pid, *quickstart.training_workers(session)]


def test_every_artifact_is_that_of_a_run_on_a_disk(on_disk: Path, on_s3: tuple[Folder, Path, s3.Proxy]):
    store, _, proxy = on_s3
    assert proxy.failed > 50
    ours, theirs = quickstart.manifests(store), quickstart.manifests(on_disk)
    assert ours.keys() == theirs.keys()
    for stage in ours:
        assert ours[stage]["fingerprint"] == theirs[stage]["fingerprint"], stage
        assert artifact.verify(store / ours[stage]["kind"] / ours[stage]["fingerprint"]) == []
    # Those of training and of the report hold times.
    for stage in ("corpus-vqa", "corpus-live", "clean-vqa", "clean-live", "pack", "evaluate", "deploy"):
        assert ours[stage]["content_digest"] == theirs[stage]["content_digest"], stage
    trained = Path("train") / ours["train"]["fingerprint"]
    model = "model/model.safetensors"
    weights, expected = (load((root / str(trained) / model).read_bytes()) for root in (store, on_disk))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-6)
    steps = (store / str(trained) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, 61))


def test_the_store_holds_everything_and_the_folder_of_the_commands_nothing(
    on_s3: tuple[Folder, Path, s3.Proxy],
):
    store, folder, _ = on_s3
    assert [path.name for path in folder.iterdir() if path.name != "report"] == []
    assert {path.name for path in store.iterdir()} >= {
        *("checkpoints", "clean", "corpus", "deploy", "evaluate", "jobs", "pack", "report", "session"),
        *("tracking", "train"),
    }
    assert [path.name for path in (store / "tracking").rglob("events.out.tfevents.*")]
    everything = b"".join(path.read_bytes() for path in store.rglob("*"))
    assert s3.SECRET_KEY.encode() not in everything


def test_a_person_reads_status_logs_report_and_page(on_s3: tuple[Folder, Path, s3.Proxy]):
    store, folder, proxy = on_s3
    there = ["--store", str(proxy.through(store))]
    states = json.loads(quickstart.casa("status", *there, "--json"))
    assert {stage["state"] for stage in states["stages"]} == {"done"}
    assert [stage["attempts"] for stage in states["stages"] if stage["stage"] == "train"] == [2]
    assert "4 held-out clips" in quickstart.casa("logs", "evaluate", *there)
    assert quickstart.casa("verify", "pack", *there) == "pack: intact\n"
    assert quickstart.casa("report", *there).strip() == "report/report.html"
    page = (folder / "report" / "report.html").read_text()
    assert "Run report" in page
    assert all(f'"cards/{name}.html"' in page for name in ("pack", "clean-vqa", "clean-live"))
    assert (folder / "report" / "cards" / "pack.html").is_file()
    live = urllib.request.urlopen("http://127.0.0.1:18242/", timeout=30).read()
    assert b"<html" in live
    clips = json.load(urllib.request.urlopen("http://127.0.0.1:18242/demo/clips", timeout=30))["clips"]
    assert len(clips) == 4
    clip = urllib.request.urlopen(f"http://127.0.0.1:18242{clips[0]['url']}", timeout=30).read()
    (folder.parent / "clip.mp4").write_bytes(clip)
    said = quickstart.casa("caption", str(folder.parent / "clip.mp4"), *there, "--json").splitlines()
    assert json.loads(said[-1])["frames"] > 0
