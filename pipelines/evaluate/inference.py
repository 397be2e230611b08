"""Batch inference of every model over held-out samples with Ray Data. `predict_chunk` needs no Ray.

Little travels: references into the clean artifacts go in, texts come out. Each actor maps the artifacts into
its own memory and holds one engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from casa_core.engine.protocol import EngineProtocol
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CleanSample
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks import benchmark_for
from pipelines.evaluate.benchmarks.base import BenchmarkSettings, EvalSample, Prediction, SpokenFrame
from pipelines.storage.host import cached_copy
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
"""An actor's output: one row per `Prediction`, with its model, source and benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The work of one actor call: rows of one source's held-out split."""

    source: str
    rows: tuple[int, ...]


def chunks(readers: Mapping[str, CleanReader], settings: BenchmarkSettings) -> list[Chunk]:
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
    engine: EngineProtocol, model: str, chunk: Chunk, reader: CleanReader, settings: BenchmarkSettings
) -> list[dict[str, Any]]:
    """Run ``engine`` on the chunk's samples. Returns rows of `PREDICTION_SCHEMA`."""
    samples = []
    for index in chunk.rows:
        clean = CleanSample.from_row(reader[index])
        samples.append(EvalSample(row=index, sample=clean.sample, meta=clean.meta))
    benchmark = benchmark_for(samples[0].sample)
    predictions = benchmark.run(engine, samples, settings)
    labels = {"model": model, "source": chunk.source, "benchmark": benchmark.name}
    return [{**labels, **asdict(prediction)} for prediction in predictions]


def prediction_from_row(row: Mapping[str, Any]) -> Prediction:
    """The `Prediction` of a row of `PREDICTION_SCHEMA`."""
    values = {
        name: row[name] for name in PREDICTION_SCHEMA.names if name not in ("model", "source", "benchmark")
    }
    return Prediction(**{**values, "frames": tuple(SpokenFrame(**frame) for frame in row["frames"])})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder, and the digest of the artifact it lies in, which changes with its files."""

    folder: Folder
    digest: str


class EvalWorker:
    """The Ray actor: one model in one engine.

    Args:
        model: Name of the model, ``model`` or ``blind``.
        checkpoint: Its weights; from S3 each machine copies them once.
        sources: Source name → clean artifact folder.
        settings: The recipe's evaluate settings.
    """

    def __init__(
        self, model: str, checkpoint: Checkpoint, sources: Mapping[str, Folder], settings: BenchmarkSettings
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._readers = {source: CleanReader(folder, HELD_OUT) for source, folder in sources.items()}
        self._settings = settings

    @cached_property
    def _engine(self) -> EngineProtocol:
        """Loaded by the first call: Ray takes an error in the constructor for a lost actor, and starts it
        again and again."""
        import torch

        from casa_core.engine.engine import Engine

        torch.set_num_threads(1)  # as many actors as cores: more threads would compete
        with cached_copy(self._checkpoint.folder, self._checkpoint.digest) as folder:
            return Engine.from_pretrained(folder)

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
    checkpoints: Mapping[str, Checkpoint],
    sources: Mapping[str, Folder],
    work: Sequence[Chunk],
    settings: BenchmarkSettings,
    *,
    workers: int,
    on_rows: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Run every model over all the work; the order of the rows does not depend on timing.

    All models run side by side, since each actor spends its first seconds loading: ``workers`` actors in all,
    but at least one per model.

    Args:
        checkpoints: Model name → its weights.
        sources: Source name → clean artifact folder.
        work: From `chunks`.
        settings: The recipe's evaluate settings.
        workers: Actors over all models.
        on_rows: Called with the number of new rows as they arrive.

    Raises:
        CasaError: As an engine or a benchmark raises it.

    Returns:
        Rows of `PREDICTION_SCHEMA` by model and source (in the orders given), row and turn.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayTaskError

    from pipelines.data.store.ray_data import original_error, quiet_context

    items = [{"source": chunk.source, "rows": list(chunk.rows)} for chunk in work]
    each = max(1, workers // len(checkpoints))

    def rows_of(model: str, checkpoint: Checkpoint) -> ray.data.Dataset:
        # One block per chunk: the pool gives a chunk to the first free actor.
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            EvalWorker,
            fn_constructor_args=(model, checkpoint, dict(sources), settings),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(each, len(items))),
            num_cpus=1,
        )

    rows = []
    try:
        with ray.data.DataContext.current(quiet_context()):
            first, *others = (rows_of(model, checkpoint) for model, checkpoint in checkpoints.items())
            dataset = first.union(*others) if others else first
        for batch in _tables(dataset):
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
