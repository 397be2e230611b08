"""The committed results on one page, and two results beside each other.

python -m benchmarks.leaderboard                          # writes benchmarks/leaderboard.md
python -m benchmarks.leaderboard BEFORE.json AFTER.json   # numbers that differ, and by how much

Each line of the page is a number of one file in ``benchmarks/results``, with the date, machine and command it
was measured by. A benchmark that is run again changes its line; this command writes the page anew.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, table

PAGE = RESULTS.parent / "leaderboard.md"
APART = 0.02
"""Relative difference from which a number is listed; less is noise on any machine."""
LISTED = 40

Result = dict[str, Any]
Headline = tuple[str, str, Callable[[Result], str]]


HEADLINES: tuple[Headline, ...] = (
    ("packing", "sequences above the bound, FineVision-like million", lambda d: f"{_above(d):.4%}"),
    (
        "clean",
        "clean on Ray Data, beside plain Ray tasks, 80,000 records",
        lambda d: f"{_clean(d):.2f} x the time",
    ),
    (
        "train_overhead",
        "a training step, beside a plain loop, 2 x 2,048 tokens",
        lambda d: f"{_step(d):.2f} x the time",
    ),
    (
        "checkpoint",
        "steps with a save in the background",
        lambda d: f"{d['with_s'] / d['without_s'] - 1:+.1%}",
    ),
    ("dag_overhead", "the engine's part of a stage, beside Ray's", lambda d: f"{_engine(d) * 1e3:.0f} ms"),
    ("simulation", "a run as simulated, beside measured", lambda d: f"{_simulated(d):+.0%}"),
    ("evaluation", "evaluation, beside a plain loop", lambda d: f"{d['ratio']:.2f} x as fast"),
    (
        "lmms_eval",
        "evaluation, beside lmms-eval",
        lambda d: f"{d['ratios']['lmms-eval']['wall']:.2f} x as fast",
    ),
    ("decode", "compiled decoding, beside transformers' generate()", lambda d: f"{_decode(d):.2f} x as fast"),
    ("engine_latency", "from a live frame to its last word, P95", lambda d: f"{_frame(d) * 1e3:.0f} ms"),
    ("engine_streams", "live streams held, beside one at a time", lambda d: d["checks"][-1]["found"]),
    ("engine_concurrency", "answers' P95 beside 32 live streams", lambda d: d["checks"][2]["found"]),
    (
        "stream_frames_bounded",
        "growth of a frame's time over 20,000 frames",
        lambda d: f"{_growth(d):+.2f} ns",
    ),
    ("stream_restore_trained", "tokens that differ after an exact restore", lambda d: _restored(d)),
    ("precision", "answers of an int8 decode step as in fp32", lambda d: _same_answers(d)),
    ("serve_soak", "sessions cut in the soak", lambda d: d["checks"][0][1]),
)
"""File, what its number says, and the number."""


def page(results: Path = RESULTS) -> str:
    """The table of all headlines, as Markdown."""
    rows = []
    for name, what, number in HEADLINES:
        path = results / f"{name}.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        machine = re.sub(r" \(load [^)]*\)", "", data["machine"].partition(", torch")[0])
        rows.append(
            [
                what,
                number(data),
                data["date"],
                machine,
                f"`{data['command']}`",
                f"[{name}](results/{name}.md)",
            ]
        )
    return (
        "# Results\n\nWritten by `python -m benchmarks.leaderboard` from the files in [results](results); "
        "each has its options, spread and what else was measured. Times compare on one machine only.\n\n"
        + table(["what", "measured", "date", "machine", "command", "file"], rows)
    )


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a result, with its path; options and what names the run are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path or key not in ("options", "date", "machine", "command"):
                yield from numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two results of one benchmark: what differs in how they were made, and numbers that differ."""
    lines = [
        f"{key}: {before.get(key)} | {after.get(key)}"
        for key in ("command", "date", "machine", "options")
        if before.get(key) != after.get(key)
    ]
    old, new = dict(numbers(before)), dict(numbers(after))
    rows = [
        [
            name,
            f"{old[name]:.6g}",
            f"{new[name]:.6g}",
            f"{new[name] / old[name] - 1:+.1%}" if old[name] else "new",
        ]
        for name in sorted(old.keys() & new.keys(), key=lambda name: -_apart(old[name], new[name]))
        if _apart(old[name], new[name]) > APART
    ]
    lines += [f"{len(rows)} of {len(old.keys() & new.keys())} numbers differ by more than {APART:.0%}.", ""]
    lines.append(table(["number", "before", "after", "change"], rows[:LISTED]))
    if len(rows) > LISTED:
        lines.append(f"… and {len(rows) - LISTED} that differ less.")
    only = sorted(old.keys() ^ new.keys())
    if only:
        lines.append(f"In one of them only: {', '.join(only[:8])}{' …' if len(only) > 8 else ''}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    files = list(sys.argv[1:] if arguments is None else arguments)
    if files in (["-h"], ["--help"]) or len(files) not in (0, 2):
        print(__doc__)
        raise SystemExit(0 if files in (["-h"], ["--help"]) else 2)
    if files:
        before, after = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files)
        print(compared(before, after))
        return
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(HEADLINES)} results")


def _apart(before: float, after: float) -> float:
    largest = max(abs(before), abs(after))
    return abs(after - before) / largest if largest else 0.0


def _above(d: Result) -> float:
    ours = d["mixes"]["FineVision-like"]["ours"]
    return ours["sequences"] / ours["bound"] - 1


def _clean(d: Result) -> float:
    ours, plain = (
        statistics.median(d["wall"][name]["80000"]) for name in ("clean stage on Ray Data", "plain Ray tasks")
    )
    return ours / plain


def _step(d: Result) -> float:
    run = next(run for run in d["runs"] if (run["workers"], run["zero_stage"], run["text"]) == (1, 2, 2048))
    return run["ours"] / run["plain"]


def _engine(d: Result) -> float:
    engine, ray = (statistics.mean(d["seconds"][name]) for name in ("engine", "ray"))
    return (engine - ray) / d["count"]


def _simulated(d: Result) -> float:
    whole = next(line for line in d["compared"] if line["stage"] == "in all")
    return whole["predicted_s"] / whole["measured_s"] - 1


def _decode(d: Result) -> float:
    return d["sizes"][0]["batches"][0]["times_transformers"]["compiled, fp32"]


def _frame(d: Result) -> float:
    return d["seconds"]["frame to last token"]["p95"]


def _growth(d: Result) -> float:
    return d["courses"][0]["fits"]["wall"]["value"] * 1e9


def _restored(d: Result) -> str:
    said = d["summary"]["greedy"]
    return f"{said['exact: tokens that differ']} of {said['tokens said in them']}"


def _same_answers(d: Result) -> str:
    found = d["ways"]["fp32, decode step int8"]["question"]
    return f"{found['as fp32']} of {found['count']}"


if __name__ == "__main__":
    main()
