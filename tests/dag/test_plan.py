"""Plans: order, what is done, and why the rest would run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from casa_core.errors import ConfigError
from pipelines.dag import artifact
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import JobSpec
from pipelines.text_format import parse_duration

VERSIONS = {"number": "1"}


def stage(name: str, number: int = 0, version_kind: str = "number", **inputs: str) -> StageSpec:
    return StageSpec(name=name, kind=version_kind, settings={"number": number}, function="m:f", inputs=inputs)


def finish(planned: PlannedStage) -> None:
    artifact.begin(planned.folder)
    identity = {
        "fingerprint": planned.fingerprint,
        "kind": "number",
        "what": planned.spec.settings,
        "inputs": {role: folder.name for role, folder in planned.inputs.items()},
        "code_version": planned.code_version,
    }
    artifact.commit(planned.folder, identity, {}, {"stage": planned.name})


def test_stages_come_after_their_inputs_whatever_the_order_given(tmp_path: Path):
    stages = [stage("c", x="b", y="a"), stage("b", x="a"), stage("a")]
    assert [planned.name for planned in plan(stages, tmp_path, VERSIONS)] == ["a", "b", "c"]


def test_a_change_reaches_everything_made_from_it_and_nothing_else(tmp_path: Path):
    def fingerprints(number: int) -> dict[str, str]:
        stages = [stage("a", number), stage("b", x="a"), stage("c", 9)]
        return {planned.name: planned.fingerprint for planned in plan(stages, tmp_path, VERSIONS)}

    before, after = fingerprints(1), fingerprints(2)
    assert {name for name in before if before[name] != after[name]} == {"a", "b"}


def test_two_stages_that_ask_for_the_same_share_one_artifact(tmp_path: Path):
    one, other = plan([stage("one", 1), stage("other", 1)], tmp_path, VERSIONS)
    assert one.folder == other.folder
    assert one.job_prefix != other.job_prefix


def test_a_plan_says_what_is_done_and_why_the_rest_would_run(tmp_path: Path):
    stages = [stage("a"), stage("b", 1, x="a")]
    first, second = plan(stages, tmp_path, VERSIONS)
    assert (first.status, first.reason) == ("run", "never made in this store")
    assert (second.status, second.reason) == ("run", "new input from a")

    finish(first)
    first, second = plan(stages, tmp_path, VERSIONS)
    assert (first.status, first.reason) == ("done", "made by an earlier run")
    assert (second.status, second.reason) == ("run", "never made in this store")

    finish(second)
    changed = plan([stage("a"), stage("b", 2, x="a")], tmp_path, VERSIONS)[1]
    assert (changed.status, changed.reason) == ("run", "changed: number: 1 → 2")
    artifact.begin(second.folder)
    assert "did not finish" in plan(stages, tmp_path, VERSIONS)[1].reason


def test_another_version_of_the_code_makes_another_artifact(tmp_path: Path):
    (one,), (other,) = (plan([stage("a")], tmp_path, {"number": version}) for version in ("1", "2"))
    assert one.fingerprint != other.fingerprint


def test_planning_touches_nothing(tmp_path: Path):
    plan([stage("a"), stage("b", x="a")], tmp_path / "store", VERSIONS)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([stage("a"), stage("a")], "Two stages are called a"),
        ([stage("a", x="nobody")], "takes its x from nobody"),
        ([stage("a", x="b"), stage("b", x="a")], "wait for each other"),
        ([stage("a", version_kind="unknown")], "no code version"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(tmp_path: Path, stages: list[StageSpec], says: str):
    with pytest.raises(ConfigError, match=says):
        plan(stages, tmp_path, VERSIONS)


def test_a_time_out_is_a_stages_own_or_its_kinds_and_decides_nothing(tmp_path: Path):
    def planned(**timeouts: str) -> list[PlannedStage]:
        return plan(
            [replace(stage(name), placement={"timeouts": timeouts}) for name in "ab"], tmp_path, VERSIONS
        )

    limited, free = planned(number="30m", b="1h 30m"), planned()
    assert [JobSpec.of(each, tmp_path, 1).timeout_s for each in limited] == [1800, 5400]
    assert [each.timeout_s for each in free] == [None, None]
    assert [each.fingerprint for each in limited] == [each.fingerprint for each in free]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("2 min", 120), ("1d 1h 1m 1s", 90061), ("30m", 1800)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "6 hours", "-1h", "1h-30m", "0s", "1h 0x"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)
