"""Held-out samples through every model, as Ray Data batch inference. Ray is a shell around `predict_chunk`.

What travels is small: references into the clean artifacts go in, words come out. Each actor maps the
artifacts into its own memory and holds one engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from casa_core.engine.protocol import EngineProtocol
from pipelines.data.store.ray_map import original_error
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CleanSample
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks import benchmark_for
from pipelines.evaluate.benchmarks.base import EvalSample, Prediction, Settings, SpokenFrame
from pipelines.storage.uri import Folder

FRAME_TYPE = pa.struct(
    [
        ("timestamp", pa.float64()),
        ("truth", pa.string()),
        ("spoken", pa.string()),
        ("truncated", pa.bool_()),
        ("latency_s", pa.float64()),
    ]
)
PREDICTION_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("source", pa.string()),
        ("benchmark", pa.string()),
        ("row", pa.int64()),
        ("turn", pa.int32()),
        ("sample_id", pa.string()),
        ("question_type", pa.string()),
        ("question", pa.string()),
        ("truth", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),  # null for a clip
        ("frames", pa.list_(FRAME_TYPE)),  # empty for a question
    ]
)
"""What comes out of an actor: one row an `Prediction`, with the model and the source it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One actor call's work: rows of one source's held-out split."""

    source: str
    rows: tuple[int, ...]


def chunks(readers: Mapping[str, CleanReader], settings: Settings) -> list[Chunk]:
    """Cut every source's held-out split into its benchmark's batches; a source without one gives none."""
    work = []
    for source, reader in readers.items():
        if len(reader) == 0:
            continue
        size = benchmark_for(reader.sample(0).sample).batch_size(settings)
        starts = range(0, len(reader), size)
        work += [
            Chunk(source=source, rows=tuple(range(start, min(start + size, len(reader))))) for start in starts
        ]
    return work


def predict_chunk(
    engine: EngineProtocol, model: str, chunk: Chunk, reader: CleanReader, settings: Settings
) -> list[dict[str, Any]]:
    """Question ``engine`` about the chunk's samples. Returns rows of `PREDICTION_SCHEMA`."""
    held_out = []
    for index in chunk.rows:
        clean = CleanSample.from_row(reader[index])
        held_out.append(EvalSample(row=index, sample=clean.sample, meta=clean.meta))
    benchmark = benchmark_for(held_out[0].sample)
    outcomes = benchmark.run(engine, held_out, settings)
    labels = {"model": model, "source": chunk.source, "benchmark": benchmark.name}
    return [{**labels, **asdict(outcome)} for outcome in outcomes]


def prediction_from_row(row: Mapping[str, Any]) -> Prediction:
    """The `Prediction` of a row of `PREDICTION_SCHEMA`."""
    values = {
        name: row[name] for name in PREDICTION_SCHEMA.names if name not in ("model", "source", "benchmark")
    }
    return Prediction(**{**values, "frames": tuple(SpokenFrame(**frame) for frame in row["frames"])})


class EvalWorker:
    """The actor: one engine, one model.

    Args:
        model: Name of the examinee, ``model`` or ``blind``.
        checkpoint: Its checkpoint folder.
        sources: Source name → clean artifact folder.
        settings: The recipe's evaluate settings.
    """

    def __init__(
        self, model: str, checkpoint: Path, sources: Mapping[str, Folder], settings: Settings
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._readers = {source: CleanReader(folder, HELD_OUT) for source, folder in sources.items()}
        self._settings = settings

    @cached_property
    def _engine(self) -> EngineProtocol:
        """Loaded by the first call: an error here is then the stage's own, where one in the constructor would
        look to Ray like a lost actor, to be started again and again."""
        import torch

        from casa_core.engine.engine import Engine

        torch.set_num_threads(1)  # as many actors as cores: more threads each would only fight
        return Engine.from_pretrained(self._checkpoint)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``{source: string, rows: list<int64>}`` in, `PREDICTION_SCHEMA` out."""
        rows: list[dict[str, Any]] = []
        for item in batch.to_pylist():
            chunk = Chunk(source=item["source"], rows=tuple(item["rows"]))
            rows += predict_chunk(
                self._engine, self._model, chunk, self._readers[chunk.source], self._settings
            )
        return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def predict(
    checkpoints: Mapping[str, Path],
    sources: Mapping[str, Folder],
    work: Sequence[Chunk],
    settings: Settings,
    *,
    workers: int,
    on_rows: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Run every model over all the work and gather the outcomes, in an order that does not depend on timing.

    All models run side by side, since each actor spends its first seconds loading. ``workers`` actors in all,
    but at least one a model.

    Args:
        checkpoints: Model name → checkpoint folder.
        sources: Source name → clean artifact folder.
        work: From `chunks`.
        settings: The recipe's evaluate settings.
        workers: Actors over all models.
        on_rows: Called with the number of new outcomes as they arrive.

    Raises:
        CasaError: Whatever an engine or a benchmark refuses.

    Returns:
        Rows of `PREDICTION_SCHEMA` by model and source (in the orders given), row and turn.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayTaskError

    options = ray.data.DataContext.get_current()
    options.enable_progress_bars = False
    options.raise_original_map_exception = True  # an actor's CasaError arrives with its why and its remedy
    items = [{"source": chunk.source, "rows": list(chunk.rows)} for chunk in work]
    each = max(1, workers // len(checkpoints))

    def answers(model: str, checkpoint: Path) -> ray.data.Dataset:
        # One block a chunk: the pool hands a chunk to whichever actor is free.
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            EvalWorker,
            fn_constructor_args=(model, checkpoint, dict(sources), settings),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(each, len(items))),
            num_cpus=1,
        )

    first, *others = (answers(model, checkpoint) for model, checkpoint in checkpoints.items())
    rows = []
    try:
        for batch in _tables(first.union(*others) if others else first):
            rows += batch.to_pylist()
            on_rows(batch.num_rows)
    except RayTaskError as error:
        raise original_error(error.cause) from error
    models, names = list(checkpoints), list(sources)
    return sorted(
        rows, key=lambda r: (models.index(r["model"]), names.index(r["source"]), r["row"], r["turn"])
    )


def _tables(dataset: Any) -> Iterator[pa.Table]:
    return dataset.iter_batches(batch_size=None, batch_format="pyarrow")
