"""Dashboards and alerts ask for what Ray and the endpoint export, and alerts say what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ray.dashboard.consts import GPU_TAG_KEYS
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from tests.serve.observe.test_dashboard import EXPORTED
from tests.support.infra.promql import asked
from tests.support.infra.ray_metrics import exported_by
from tests.support.own_ray import own_ray
from tests.support.paths import ROOT

INFRA = ROOT / "infra"
DASHBOARDS = {
    name: json.loads((INFRA / "dashboards" / f"{name}.json").read_text())
    for name in ("training", "data", "evaluation")
}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
GROUPS = yaml.safe_load((INFRA / "kubernetes" / "monitoring" / "alerts.yaml").read_text())["spec"]["groups"]
ALERTS = [pytest.param(rule, id=rule["alert"]) for group in GROUPS for rule in group["rules"]]
EXPRESSIONS = {
    *(target["expr"] for param in PANELS for target in param.values[0]["targets"]),  # type: ignore[index]
    *(param.values[0]["expr"] for param in ALERTS),  # type: ignore[index]
}
OF_GPUS = {f"ray_{name}": set(GPU_TAG_KEYS) for name in METRICS_GAUGES if re.match("node_(gpu|gram)", name)}
"""What a node with GPUs exports: this machine may have none."""


@pytest.fixture(scope="module")
def exported() -> Iterator[dict[str, set[str]]]:
    needed = {name for one in EXPRESSIONS for name in asked(one)[0] if name.startswith("ray_")}
    with own_ray(cpus=3):
        yield exported_by(needed - OF_GPUS.keys()) | OF_GPUS | EXPORTED


@pytest.mark.slow
def test_every_expression_asks_for_metrics_and_labels_that_are_exported(exported: dict[str, set[str]]):
    for expression in EXPRESSIONS:
        names, labels = asked(expression)
        assert names
        assert names <= exported.keys(), expression
        known = set[str]().union(*(exported[name] for name in names)) | {"le"}
        assert labels <= known, expression


def test_the_check_of_expressions_reads_names_and_labels_apart():
    read = asked('sum by (a_label) (rate(ray_x_total{kind=~"a|b"}[5m])) / 1e9 > 0.5 and on() (ray_y == 1)')
    assert read == ({"ray_x_total", "ray_y"}, {"a_label", "kind"})
    with pytest.raises(ValueError, match="increse"):
        asked("increse(ray_x_total[5m])")


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_is_described_and_its_legends_name_labels_it_groups_by(panel: dict[str, Any]):
    assert panel["description"].endswith(".")
    for target in panel["targets"]:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b[^)]*\)", target["expr"])


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_panels_do_not_overlap(dashboard: str):
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[dashboard]["panels"]:
        box = panel["gridPos"]
        columns = range(box["x"], box["x"] + box["w"])
        cells = {(x, y) for x in columns for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "remedy"}
    for text in rule["annotations"].values():
        assert text.endswith(".")
    grouped = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert grouped <= asked(rule["expr"])[1]
