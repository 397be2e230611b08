"""Readable names of artifacts: computed from manifests, and found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from casa_core.errors import ConfigError
from pipelines.cli.app import app
from pipelines.cli.shared.artifacts import find_artifact
from pipelines.dag.history.aliases import alias_of, find_by_alias, is_alias
from tests.dag.history.test_history import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def began(folder: Path, started: str) -> Path:
    """An artifact, as if it had been begun then."""
    path = folder / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["provenance"]["started"] = started
    path.write_text(json.dumps(manifest))
    return folder


def test_an_artifact_is_found_by_its_stage_and_as_much_of_its_time_as_is_needed(store: Store):
    first = began(store.run()["train"], "2026-11-29T09:10:11+00:00")
    second = began(store.run(steps=2)["train"], "2026-11-30T09:10:11+00:00")
    third = began(store.run(steps=3)["train"], "2026-11-30T14:05:01+00:00")
    expected = {
        "train@2026-11-29": first,
        "train@2026-11-30T09": second,
        "train@2026-11-30 14:05": third,
        "train@latest": third,
    }
    for alias, folder in expected.items():
        assert is_alias(alias)
        assert find_by_alias(alias, store.root) == folder
        assert find_artifact(alias, store.root) == folder
    assert alias_of(
        {"provenance": {"stage": "train", "started": "2026-11-30T14:05:01+00:00"}, "kind": "x"}
    ) == ("train@2026-11-30T14:05")
    with pytest.raises(ConfigError, match=r"names 2 artifacts.*\n.*train@2026-11-30T14:05 \("):
        find_by_alias("train@2026-11-30", store.root)


@pytest.mark.parametrize("alias", ["train@2020-01-01", "other@latest"])
def test_an_alias_of_nothing_is_refused_with_those_that_there_are(store: Store, alias: str):
    store.run()
    with pytest.raises(ConfigError, match="names no artifact"):
        find_by_alias(alias, store.root)


@pytest.mark.parametrize(
    "text", ["train", "train@", "a/train@latest", "train@yesterday", "hf://x@main", "a@b.c"]
)
def test_other_texts_are_no_aliases(text: str):
    assert not is_alias(text)


def test_the_commands_show_aliases_and_take_them(store: Store):
    made = store.run()
    began(made["train"], "2026-11-30T14:05:01+00:00")
    where = ["--store", str(store.root)]

    def casa(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, *where], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.output

    assert "train@2026-11-30T14:05" in casa("lineage", "evaluate")
    assert json.loads(casa("lineage", "train@2026-11-30", "--json"))["fingerprint"] == made["train"].name
    assert "intact" in casa("verify", "train@latest")
    assert "are the same work" in casa("diff", "train@latest", "train")
