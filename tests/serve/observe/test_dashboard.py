"""The dashboard shows what /metrics exports, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from casa_core.engine.load import LoadSnapshot
from serve.observe.metrics import Metrics
from tests.support.paths import ROOT

DASHBOARD = json.loads((ROOT / "infra" / "dashboards" / "serving.json").read_text())
FUNCTIONS = {"sum", "max", "rate", "histogram_quantile", "by"}


def exported() -> dict[str, set[str]]:
    """Name of each sample → its labels, after something of every kind has happened."""
    metrics = Metrics({"m": "c"})
    metrics.requests.labels("/v1/models", "200").inc()
    metrics.request_seconds.labels("/v1/models").observe(0.1)
    metrics.refusals.labels("overloaded").inc()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render(LoadSnapshot(slots=1))):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


EXPORTED = exported()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def labels_in(blocks: str, expression: str) -> set[str]:
    return {label for block in re.findall(blocks, expression) for label in re.findall(r"[a-z_]+", block)}


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_every_expression_asks_for_samples_and_labels_that_are_exported(title: str, expression: str):
    assert expression.count("(") == expression.count(")")
    without_texts = re.sub(r'"[^"]*"', "", expression.replace("$__rate_interval", "5m"))
    selected = labels_in(r"\{(.*?)\}", without_texts)
    grouped = labels_in(r"by \((.*?)\)", without_texts)
    words = set(re.findall(r"\b[a-z_]{2,}\b", re.sub(r"\[5m\]", "", without_texts)))
    names = {word for word in words if word.startswith(("casa_", "process_"))}
    assert names
    assert names <= EXPORTED.keys()
    for label in selected | grouped:
        assert any(label in EXPORTED[name] for name in names), label
    assert words - names - selected - grouped <= FUNCTIONS


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_a_description_and_its_legends_name_labels_it_groups_by(panel: dict[str, Any]):
    assert panel["description"].endswith(".")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b[^)]*\)", target["expr"])
        assert not target["expr"].startswith("histogram_quantile") or unit == "s"


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        box = panel["gridPos"]
        columns = range(box["x"], box["x"] + box["w"])
        cells = {(x, y) for x in columns for y in range(box["y"], box["y"] + box["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_everything_of_ours_that_is_exported_is_shown_or_about_single_requests():
    shown = {name for _, expression in EXPRESSIONS for name in re.findall(r"casa_[a-z_]+", expression)}
    summed = ("_sum", "_count")
    families = {name for name in EXPORTED if name.startswith("casa_") and not name.endswith(summed)}
    assert families - shown == {
        "casa_info",
        "casa_http_request_seconds_bucket",  # per route: answers have panels of their own
        "casa_answers_running",  # the engine's own count is shown
        "casa_engine_streams",
        "casa_engine_image_tokens",
        "casa_engine_tokens_total",
        "casa_live_session_seconds_total",
        "casa_live_prompt_seconds_bucket",
    }
