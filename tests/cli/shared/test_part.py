"""Part of a run: a stage with what it needs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from casa_core.errors import ClusterError, ConfigError
from pipelines.cli.shared import part
from pipelines.cli.shared.run_handle import open_run
from pipelines.dag import artifact


def test_a_stage_comes_with_all_it_needs_and_nothing_else(tmp_path: Path):
    opened = open_run("quickstart", [f"where.store={tmp_path}"])
    found = part.up_to(opened, "pack")
    assert [stage.name for stage in found.stages][-1] == "pack"
    assert {stage.name for stage in found.stages} == {
        *("corpus-vqa", "clean-vqa", "corpus-live", "clean-live", "pack"),
    }
    assert found.recorded == opened.stages, "the run that is recorded is the whole one"
    with pytest.raises(ConfigError, match="no stage pak"):
        part.up_to(opened, "pak")


def test_inputs_of_other_runs_are_waited_for_and_named_where_they_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part, "POLL_S", 0.05)
    stages = part.up_to(open_run("quickstart", [f"where.store={tmp_path}"]), "clean-vqa").stages[:-1]
    with pytest.raises(ClusterError, match="corpus-vqa was not made within 0 s"):
        part.await_inputs(stages, 0.2)

    def make() -> None:
        artifact.begin(stages[0].folder)
        artifact.commit(stages[0].folder, {"kind": "corpus", "fingerprint": stages[0].fingerprint}, {}, {})

    threading.Timer(0.3, make).start()
    part.await_inputs(stages, 20)
