"""Planning a packed corpus alone, without a sample being read: time and memory by number of samples.

Sizes are drawn from a mixture like FineVision's: many short questions about pictures, some text, long
conversations, and one video in fifty. Run it as ``python -m benchmarks.pack_plan --samples 24000000``.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.data.pack.accounting import check_plan, check_rows
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.card import pack_card
from pipelines.data.pack.encode import EncodeReport
from pipelines.data.pack.plan import gather, plan_rows, plan_sequences, sample_stream
from pipelines.data.pack.write import WriteTasks
from pipelines.data.store.quarantine import Tally
from pipelines.recipe.pack import Mixture

LIMITS = Limits(pictures=Budget(2048, 20_480), video=Budget(2048, 92_160), split=True)
ROWS_PER_TASK = 4096
SOURCES = 40


def report(rng: np.random.Generator, start: int) -> EncodeReport:
    """What one encoding task reports; one row in fifty was split in two."""
    rows = np.repeat(
        np.arange(start, start + ROWS_PER_TASK), rng.choice([1, 2], ROWS_PER_TASK, p=[0.98, 0.02])
    )
    part = np.concatenate([[0], (rows[1:] == rows[:-1]).astype(np.int64)])
    size = len(rows)
    return EncodeReport(
        row_E=rows.astype(np.int32),
        part_E=part.astype(np.int32),
        text_E=np.clip(rng.lognormal(5.0, 0.9, size), 16, 2048).astype(np.int32),
        image_E=np.clip(rng.lognormal(6.4, 0.6, size), 16, 20_480).astype(np.int32),
        video_E=(rng.random(size) < 0.02) & (part == 0) & (np.append(part[1:], 0) == 0),
        rejected=np.empty(0, np.int32),
        tally=Tally(),
    )


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Prints how long a block took and the most memory the process has had by its end."""
    began = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:28} {time.perf_counter() - began:8.1f} s   peak {peak:5.2f} GiB", flush=True)


def main() -> None:
    """Runs every step of the driver but those that read or write samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    samples = parser.parse_args().samples
    rng = np.random.default_rng(0)
    with measured("start"):
        pass
    with measured("reports of encoding tasks"):
        tasks = max(samples // ROWS_PER_TASK, SOURCES)
        owners = sorted(int(number) for number in rng.zipf(1.5, tasks) % SOURCES)
        rows = dict.fromkeys(range(SOURCES), 0)
        reports = []
        for owner in owners:
            reports.append(report(rng, rows[owner]))
            rows[owner] += ROWS_PER_TASK
        names = [f"s{number:02d}" for number in range(SOURCES)]
        encoded = gather(names, [names[owner] for owner in owners], reports)
        del reports
    with measured("rows accounted for"):
        for number, name in enumerate(names):
            own = encoded.of(number, encoded.row_E), encoded.of(number, encoded.part_E)
            check_rows(name, np.ones(rows[number], bool), np.empty(0, np.int32), *own)
    with measured("sequences planned"):
        drawn = plan_rows(encoded, Mixture())
        plan = plan_sequences(encoded, sample_stream(encoded, drawn, 0), LIMITS, 0)
    with measured("plan checked"):
        check_plan(encoded, plan, drawn)
    with measured("tasks made, checksums planned"):
        tasks = WriteTasks(None, encoded, plan, {}, 512)  # pyright: ignore[reportArgumentType]
        for number in range(len(tasks)):
            assert len(tasks[number].offsets_S) > 1
            tasks.planned_checksum(number)
    with measured("card"):
        card = pack_card(encoded, plan, LIMITS)
    pictures = card["by_kind"]["image"]
    over = pictures["sequences"] / pictures["lower_bound"] - 1
    print(f"{len(encoded):,} samples, {len(plan):,} sequences; with pictures {over:.2%} over the lower bound")


if __name__ == "__main__":
    main()
