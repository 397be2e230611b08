"""How many samples packing may set aside, and what its card and headline state of all that was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import DataError
from casa_core.types import Sample, Text
from pipelines.cards.tables import quarantine_section
from pipelines.dag.context import StageContext
from pipelines.data.pack import run as pack
from pipelines.data.store.quarantine import read_quarantine
from pipelines.data.store.shard_pipeline import run_here
from pipelines.data.store.shard_writing import CARD
from tests.support.data.clean import chats, write_clean
from tests.support.data.prepared import PACK

WHAT = PACK | {"sources": ["short", "long"], "mixture": {}, "filters": {}, "max_failures": 0.05}


def talk(source: str, number: int, words: int) -> tuple[Sample, list[Any]]:
    said = (
        Text(role="user", text="what"),
        Text(role="assistant", text=" ".join(["red"] * words), trained=True),
    )
    return Sample(source=source, sample_id=f"{source}/{number}", parts=said), []


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    """One source of which nothing is set aside, one of which 4 of 40 samples are over the text budget."""
    talks = [talk("long", number, 200 if number % 10 == 3 else 2) for number in range(40)]
    return {
        "short": write_clean(tmp_path / "short", [talk("short", number, 2) for number in range(400)]),
        "long": write_clean(tmp_path / "long", talks),
    }


def run_pack(output: Path, inputs: dict[str, Path], **changes: Any) -> dict[str, Any]:
    output.mkdir()
    context = StageContext(name="pack", settings=WHAT | changes, placement={}, inputs=inputs, output=output)
    return pack.pack_sources(context, run_here)


def test_a_source_over_the_failure_budget_stops_the_run_before_anything_is_packed(inputs, tmp_path):
    with pytest.raises(DataError) as stopped:
        run_pack(tmp_path / "pack", inputs)
    message = str(stopped.value)
    assert "Source 'long'" in message
    assert "4 of 40" in message  # of its own, not of the 440 of all sources
    assert "over_text_budget" in message
    assert "text tokens" in message  # an example
    assert "budgets of `pack`" in message
    assert "data.max_failures" in message
    assert len(read_quarantine(tmp_path / "pack" / "quarantine.parquet")) == 4
    assert not list((tmp_path / "pack").glob("packed-*"))
    assert not (tmp_path / "pack" / CARD).exists()


def test_the_run_stops_at_the_task_that_spends_the_budget(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "ROWS_PER_TASK", 10)
    with pytest.raises(DataError, match="3 of 40"):  # of 0.05 x 40 = 2 that may be, one in each task
        run_pack(tmp_path / "pack", inputs)
    assert len(list((tmp_path / "pack" / ".reports").glob("encoded-*.json"))) == 40 + 3


def test_within_the_budget_the_rest_is_packed(inputs, tmp_path):
    summary = run_pack(tmp_path / "pack", inputs, max_failures=0.1)
    assert summary["quarantine"] == {"over_text_budget": 4}
    assert "4 quarantined" in summary["headline"]


def test_what_filters_remove_is_no_failure_and_no_record_of_the_share(inputs, tmp_path):
    filters = {"text_length": {"min_characters": 1, "max_characters": 100}}
    assert run_pack(tmp_path / "pack", inputs, filters=filters)["quarantine"] == {}
    talks = [talk("long", n, {3: 200}.get(n, 4 if n < 10 else 1)) for n in range(40)]
    one = {**inputs, "long": write_clean(tmp_path / "one", talks)}
    assert run_pack(tmp_path / "fortieth", one)["quarantine"] == {"over_text_budget": 1}
    filters = {"text_length": {"min_characters": 11, "max_characters": None}}
    with pytest.raises(DataError, match="1 of 10"):
        run_pack(tmp_path / "tenth", {"long": one["long"]}, sources=["long"], filters=filters)


def test_the_card_and_the_headline_state_what_clean_set_aside(tmp_path):
    folder = write_clean(tmp_path / "chats", chats(60))
    card = json.loads((folder / CARD).read_text())
    card["splits"]["train"]["records"] = 412
    reasons = {"missing_image": 2, "truncated_image": 80}
    (folder / CARD).write_text(json.dumps(card | {"quarantine": reasons}))
    summary = run_pack(tmp_path / "pack", {"chats": folder}, sources=["chats"], max_failures=0.5)
    assert "82 quarantined by clean" in summary["headline"]
    found = json.loads((tmp_path / "pack" / CARD).read_text())["clean"]
    assert found == {"chats": {"records": 412, "quarantine": reasons}}
    page = quarantine_section([], 60, found)
    assert "Set aside before, by clean" in page
    assert "<td>80</td>" in page.replace(' class="number"', "")
