"""A run made again from what its artifacts' manifests hold, and compared with what it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from casa_core.errors import ConfigError
from infra.environment import ABSENT, Difference, differences
from pipelines.dag.changes import numbers
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.history.lineage import Made
from pipelines.dag.plan import DATA_KINDS, StageSpec
from pipelines.dag.raw_inputs import identify, identify_remote

MetricKind = Literal["loss", "score", "count"]
TOLERANCES: dict[MetricKind, float] = {"loss": 0.01, "score": 0.01, "count": 0.0}
"""How far a metric may be from the recorded one: a loss as a share of it, a score and a count absolutely.

On one machine, with as many workers, all are equal. Another number of workers, or other kernels, add in
another order, and training enlarges that: by less than this in what was seen, and by more than this with
another seed.
"""
UNCOMPARED = re.compile(r"(^|_)(ms|s|seconds|bytes|wait|mfu|gib)(_|$)|per_second|latency")
"""Names of what depends on the machine and the hour."""


def made_by_stages(roots: Sequence[Made]) -> list[Made]:
    """Artifacts and all they were made of, each once, inputs before what was made of them.

    Raises:
        ConfigError: For one that cannot be made again: no longer in its store, or made elsewhere.
    """
    found: dict[str, Made] = {}

    def visit(made: Made) -> None:
        if made.fingerprint in found:
            return
        if made.manifest is None or "adopted" in made.manifest["provenance"]:
            gone = made.manifest is None
            raise ConfigError(
                f"{made.name} cannot be made again.",
                "It is no longer in the store, and so is what its manifest held."
                if gone
                else "It was made elsewhere and adopted: how, no manifest holds.",
                "Name an artifact that was not made of it.",
            )
        for own in made.inputs.values():
            visit(own)
        found[made.fingerprint] = made

    for root in roots:
        visit(root)
    return list(found.values())


def stage_specs(
    made: Sequence[Made], place: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> list[StageSpec]:
    """The stages that make artifacts again, in the order of :func:`made_by_stages`.

    Args:
        place: From where a stage ran, as its manifest holds it, to where it is to run.
    """
    names: dict[str, str] = {}
    specs: list[StageSpec] = []
    for own in made:
        manifest = own.manifest or {}
        stage = manifest["provenance"].get("stage", manifest["kind"])
        taken = stage in names.values()  # as in artifacts of two runs
        names[own.fingerprint] = f"{stage}-{own.fingerprint[:6]}" if taken else stage
        location = manifest.get("location", {})
        specs.append(
            StageSpec(
                name=names[own.fingerprint],
                kind=manifest["kind"],
                settings={key: value for key, value in manifest["what"].items() if key not in location},
                function=f"{STAGE_MODULES[manifest['kind']]}:run_stage",
                inputs={role: names[one.fingerprint] for role, one in own.inputs.items()},
                placement=place(manifest["provenance"].get("where", {})),
                location=location,
            )
        )
    return specs


def environment_differences(
    made: Sequence[Made], present: Mapping[str, Any], versions: Mapping[str, str]
) -> list[Difference]:
    """What sets the recorded environments of artifacts apart from the present one: each difference once.

    Args:
        versions: Code version of each kind of stage, now.
    """
    found: dict[Difference, None] = {}
    for own in made:
        manifest = own.manifest or {}
        provenance = manifest["provenance"]
        found |= dict.fromkeys(differences(provenance, present))
        recorded, version = manifest["code_version"], versions.get(manifest["kind"], ABSENT)
        if recorded != version:
            commit = str(provenance.get("git_commit") or "").rstrip("+")
            remedy = f"`git checkout {commit}` has it." if commit else "Use the code that made it."
            found[Difference(f"version of {manifest['kind']}", recorded, version, remedy, True)] = None
        found |= dict.fromkeys(_raw_inputs(manifest))
    return sorted(found, key=lambda one: not one.is_decisive)


def _raw_inputs(manifest: Mapping[str, Any]) -> Iterator[Difference]:
    """Raw data, tokenizers and weights that are not what they were."""
    what = manifest["what"]
    for name, place in manifest.get("location", {}).items():
        weights = what.get("weights") or {}
        recorded = {"path": what.get("raw"), "tokenizer_path": what.get("tokenizer", {}).get("raw")}.get(
            name, weights.get(name)
        )
        if not isinstance(recorded, Mapping):
            continue
        try:
            present = _same_or_now(place, recorded)
        except ConfigError:  # nothing is there, or it cannot be read
            present = {"digest": ABSENT}
        if present != recorded:
            before, after = (str(one["digest"])[:12] for one in (recorded, present))
            remedy = f"Put back what lay at {place}."
            yield Difference(f"raw {name} of {manifest['kind']}", before, after, remedy, True)


def _same_or_now(place: str, recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of raw input, by its times of change where it was identified by these."""
    if "://" in place:
        return identify_remote(place)
    by_times = identify(Path(place), read=False)
    return by_times if by_times == recorded else identify(Path(place))


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a stage's summary, then and now.

    Attributes:
        tolerance: How far ``after`` may be from ``before``, absolutely.
    """

    name: str
    kind: MetricKind
    before: float
    after: float | None
    tolerance: float

    @property
    def is_within(self) -> bool:
        return self.after is not None and abs(self.after - self.before) <= self.tolerance


@dataclass(frozen=True, slots=True)
class Remade:
    """An artifact beside the one that was made again.

    Attributes:
        differing: Files whose content is not the same.
        metrics: Numbers of its summary; none of data, which is compared byte for byte.
    """

    stage: str
    kind: str
    before: str
    after: str
    differing: list[str]
    metrics: list[Metric] = field(default_factory=list)

    @property
    def is_data(self) -> bool:
        return self.kind in DATA_KINDS

    @property
    def is_reproduced(self) -> bool:
        return not self.differing if self.is_data else all(one.is_within for one in self.metrics)


def compare_remade(
    stage: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    left_out: frozenset[str],
    tolerances: Mapping[MetricKind, float],
) -> Remade:
    """An artifact's manifest against that of the one that was made again.

    Args:
        left_out: Names of its files whose content does not count.
    """
    same = before["content_digest"] == after["content_digest"]
    names = sorted((before["files"].keys() | after["files"].keys()) - left_out)
    files = [] if same else [one for one in names if before["files"].get(one) != after["files"].get(one)]
    metrics = []
    if before["kind"] not in DATA_KINDS:
        now = numbers(after["summary"])
        for name, value in numbers(before["summary"]).items():
            if not UNCOMPARED.search(name.rpartition(".")[2]):
                kind = _kind_of(name, value)
                tolerance = tolerances[kind] * (abs(value) if kind == "loss" else 1.0)
                metrics.append(Metric(name, kind, value, now.get(name), tolerance))
    return Remade(stage, before["kind"], before["fingerprint"], after["fingerprint"], files, metrics)


def _kind_of(name: str, value: float) -> MetricKind:
    if isinstance(value, int):
        return "count"
    return "loss" if re.search(r"loss|perplexity|nats", name) else "score"


def read_tolerances(given: Sequence[str]) -> dict[MetricKind, float]:
    """The tolerances, with ``KIND=VALUE`` laid over them.

    Raises:
        ConfigError: For another kind, or no number.
    """
    found = dict(TOLERANCES)
    for one in given:
        name, _, text = one.partition("=")
        try:
            value = float(json.loads(text))
        except (ValueError, TypeError):
            value = -1.0
        if name not in found or value < 0:
            raise ConfigError(
                f"`--tolerance {one}` is no tolerance.",
                "It is KIND=VALUE; loss is a share, score and count are absolute.",
                f"Kinds are {', '.join(found)}: for example `--tolerance loss=0.02`.",
            )
        found[name] = value
    return found
