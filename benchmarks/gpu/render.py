"""JSON of the GPU checks → one page, the newest result of each entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import table

TITLES = {
    "ceilings": "Ceilings: what the device can do",
    "parity": "Parity: relative errors against float64",
    "stream": "One stream: 896² frames, 16 greedy tokens a turn, batch 1",
    "train": "Training: one packed sequence of 2048 text and 20,480 image tokens",
    "layer": "One layer: ten windows of 1024 image and 50 text tokens (the paper's Table 11)",
    "streams": "Streams at once: 448², 2 frames a second, every frame on time",
}
HIDDEN = ("machine", "dtype", "tiny", "trials")


def render(results: Path) -> Path:
    """Write ``gpu.md`` beside the folder of results."""
    newest: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for path in sorted(results.glob("*.json")):  # names begin with the date: later ones win
        check = json.loads(path.read_text())
        for entry, found in check["entries"].items():
            newest.setdefault(check["check"], {})[entry] = (path.name[:10], found)
    parts = [
        "# GPU checks\n\n`python -m benchmarks.gpu.run SUB-COMMAND`, then `python -m benchmarks.gpu.run "
        "render`; random weights of the real\nsizes, every check of correctness before any timing.\n"
    ]
    for name, title in TITLES.items():
        if name in newest:
            parts.append(f"## {title}\n\n{_section(newest[name])}")
    path = results.parent / "gpu.md"
    path.write_text("\n".join(parts))
    return path


def _section(entries: dict[str, tuple[str, dict[str, Any]]]) -> str:
    columns = list(dict.fromkeys(key for _, found in entries.values() for key in found if key not in HIDDEN))
    rows = [
        [entry, *(_cell(found.get(column, "")) for column in columns), date]
        for entry, (date, found) in entries.items()
    ]
    machines = {
        f"{found['machine']}, {found['dtype']}" + (", TOY SIZES: no measurement" if found["tiny"] else "")
        for _, found in entries.values()
    }
    header = ["", *(column.replace("_", " ") for column in columns), "date"]
    return "; ".join(sorted(machines)) + ".\n\n" + table(header, rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 0.01 else f"{value:g}"
    return str(value)
