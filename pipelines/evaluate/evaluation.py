"""An evaluation: one checkpoint, any number of benchmarks, one folder of results."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casa_core.engine.requests import SamplingParams
from casa_core.errors import ConfigError
from pipelines.dag.checkpoints import local_checkpoint
from pipelines.dag.code_version import read_versions
from pipelines.evaluate.judge.judging import (
    Court,
    Judgement,
    OnReply,
    account,
    judge_rows,
    points,
    write_judgements,
)
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import VIDEO_TOKENS, Mode, Model
from pipelines.evaluate.results import (
    BenchmarkResult,
    Throughput,
    judged,
    result_of,
    truths_of,
    write_result,
)
from pipelines.evaluate.runner import Row, answer_all
from pipelines.evaluate.tables import TableQuestions
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from casa_core.analysis.masking import Masking


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How answers are computed.

    Attributes:
        sampling: Greedy by default, as published scores are.
        dtype, quantize: As of `casa serve`.
        slots: Questions that one worker answers together.
        mode: How videos are shown, see :class:`pipelines.evaluate.worker.Model`.
        workers, gpus: Engines, and GPUs of each.
        on_ray: Workers are actors of the Ray cluster that was joined; otherwise one is in this process.
        max_side, max_video_tokens, mask: As of :class:`pipelines.evaluate.worker.Model`.
        court: Who judges commentaries.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    dtype: str = "auto"
    quantize: str = "none"
    slots: int = 16
    mode: Mode = "offline"
    workers: int = 1
    gpus: float = 0.0
    on_ray: bool = False
    max_side: int | None = None
    max_video_tokens: int | None = None
    mask: Masking | None = None
    court: Court | None = None

    @property
    def suffix(self) -> str:
        """Behind a benchmark's name: ``@448``, ``@self``; nothing for the checkpoint as it is."""
        return "".join(f"@{value}" for value in (self.max_side, self.mask) if value)


@dataclass(slots=True)
class Progress:
    """What was answered so far, of one benchmark; scores that a judge will give are not among it."""

    total: int
    judged: bool = False
    done: int = 0
    reused: int = 0
    failed: int = 0
    points: float = 0.0

    def add(self, row: Row, score: float) -> None:
        """Count a row."""
        self.done += 1
        self.reused += row["reused"]
        self.failed += bool(row["error"])
        self.points += score

    @property
    def mean(self) -> float:
        """Mean score so far, in percent; the headline may be put together in another way."""
        return 100 * self.points / self.done if self.done else 0.0


OnProgress = Callable[[Mapping[str, Progress]], None]


def evaluate(
    name: str,
    checkpoint: Folder,
    tables: Sequence[TableQuestions],
    options: Options,
    store: Folder,
    output: Folder,
    on_progress: OnProgress = lambda progress: None,
    on_judged: OnReply = lambda done, total: None,
) -> list[BenchmarkResult]:
    """Answer, score and write.

    Args:
        name: The model's, for people.
        tables: One for each benchmark, names unique.
        store: Where answers are kept for later runs.
        output: Gets a folder for each benchmark, written as soon as all are answered.
        on_progress: Called as answers come, with each benchmark's progress by name.
        on_judged: Called as a judge's replies come, with their number and that of all.

    Raises:
        CasaError: What an engine, a table or a judge refuses as a whole; single questions are counted as
            failed.
    """
    _check_court(tables, options)
    with local_checkpoint(checkpoint) as local:
        model = model_of(checkpoint, local, options)
        sources = {table.benchmark.name: table for table in tables}
        metrics = {table.benchmark.name: table.benchmark.metric for table in tables}
        progress = {name: Progress(len(table), metrics[name].needs_judge) for name, table in sources.items()}

        def count(rows: Sequence[Row]) -> None:
            for row, truth in zip(rows, truths_of(rows), strict=True):
                answered = row["answer"] is not None
                score = metrics[row["benchmark"]].score(row["answer"], truth) if answered else 0.0
                progress[row["benchmark"]].add(row, score)
            on_progress(progress)

        began = time.monotonic()
        rows = answer_all(
            model,
            sources,
            AnswerStore(store, model.fingerprint),
            workers=options.workers,
            gpus=options.gpus,
            on_ray=options.on_ray,
            on_rows=count,
        )
    seconds = time.monotonic() - began
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row["benchmark"]].append(row)
    shared = {
        "checkpoint": {
            "name": name,
            "folder": str(checkpoint),
            "fingerprint": model.fingerprint,
            "dtype": options.dtype,
            "quantize": options.quantize,
        },
        "throughput": _throughput(rows, seconds, options),
        "code": _code(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    judge = partial(judge_rows, on_reply=on_judged)
    return [_finish(table, by_name[table.benchmark.name], options, shared, output, judge) for table in tables]


def _check_court(tables: Sequence[TableQuestions], options: Options) -> None:
    for table in tables:
        if table.benchmark.metric.needs_judge:
            if options.court is None:
                raise ConfigError(
                    f"{table.benchmark.title} is scored by a judge, and none is named.",
                    "A commentary is compared with another one.",
                    "Give `--judge URL --judge-model NAME`; its key, if it needs one, in CASA_JUDGE_KEY.",
                )
            options.court.judge.check()
            return


def model_of(checkpoint: Folder, local: Path, options: Options) -> Model:
    """A checkpoint as workers load it; ``local`` is its copy on this machine."""
    changed = {name: getattr(options, name) for name in ("max_side", "max_video_tokens", "mask")}
    fingerprint = model_fingerprint(
        local,
        dtype=options.dtype,
        quantize=options.quantize,
        code=read_versions()["evaluate"],
        video_tokens=VIDEO_TOKENS,
        **{name: value for name, value in changed.items() if value},
    )
    return Model(
        folder=checkpoint,
        digest=fingerprint,
        fingerprint=fingerprint,
        sampling=options.sampling,
        dtype=options.dtype,
        quantize=options.quantize,
        slots=options.slots,
        mode=options.mode,
        **changed,
    )


def _finish(
    table: TableQuestions,
    rows: list[Row],
    options: Options,
    shared: Mapping[str, Any],
    output: Folder,
    judge: Callable[[Court, Sequence[Row]], list[Judgement]],
) -> BenchmarkResult:
    benchmark, court = table.benchmark, options.court
    judgements = judge(court, rows) if court and benchmark.metric.needs_judge else None
    samples, scores = judged(benchmark, rows, None if judgements is None else points(judgements))
    sampling = asdict(options.sampling) | {"max_new_tokens": table.max_new_tokens}
    named = ("slots", "max_side", "max_video_tokens", "mask")
    facts = {
        **shared,
        "data": {"root": table.root, "split": benchmark.split, "digest": table.digest, "most": table.most},
        "decoding": {
            "mode": "streaming" if benchmark.live else options.mode,
            **{name: getattr(options, name) for name in named},
            "sampling": sampling,
        },
    }
    folder = output / f"{benchmark.name}{options.suffix}"
    if court and judgements is not None:
        facts["judge"] = account(court, judgements)
        write_judgements(folder, judgements)
    result = result_of(benchmark, samples, scores, facts)
    write_result(folder, result, samples)
    return result


def _throughput(rows: Sequence[Row], seconds: float, options: Options) -> Throughput:
    import torch

    asked = [row for row in rows if row["answer"] is not None and not row["reused"]]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    tokens = sum(row["completion_tokens"] for row in asked)
    return Throughput(
        seconds=round(seconds, 3), asked=len(asked), tokens=tokens, workers=options.workers, device=device
    )


def _code() -> dict[str, str]:
    import importlib.metadata

    return {"evaluate": str(read_versions()["evaluate"]), "casa": importlib.metadata.version("casa")}
