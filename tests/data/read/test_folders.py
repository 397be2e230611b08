"""Each row of the table of folders in ``docs/data.md`` is what becomes of such a folder."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.data.read import Record, open_reader
from tests.support.data.folders import FOLDERS, Kept
from tests.support.paths import ROOT


def row_of(kept: Kept, root: Path) -> str:
    """The folder's row of the table."""
    kept.write(root)
    reader = open_reader(kept.reader, str(root), "corpus", {})
    good: dict[str, int] = {}
    bad: Counter[str] = Counter()
    for split in ("train", "test"):
        results = [result for span in reader.spans(split) for result in reader.read(span)]
        good[split] = sum(isinstance(result, Record) for result in results)
        bad.update(result.reason for result in results if not isinstance(result, Record))
    read = ", ".join(f"{count} {split}" for split, count in good.items() if count) or "nothing"
    left = [f"{reason} {count}" for reason, count in bad.items()]
    left += [reader.inventory().summary()] if reader.inventory().summary() else []
    why = f": {kept.advice}" if kept.advice and left else kept.advice
    return f"| {kept.what} | `{kept.reader}` | {read} | {'; '.join(left)}{why} |"


@pytest.mark.parametrize("kept", FOLDERS, ids=lambda kept: re.sub(r"\W+", "-", kept.what))
def test_the_table_says_what_becomes_of_a_folder(tmp_path, kept):
    row = row_of(kept, tmp_path)
    assert row in (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines(), row


def test_the_table_has_no_other_rows():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.partition("| folder | reader |")[2].partition("\n\n")[0]
    assert len(table.splitlines()) - 2 == len(FOLDERS) >= 20
