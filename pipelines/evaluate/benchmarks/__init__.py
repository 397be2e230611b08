"""The held-out benchmarks of the evaluate stage: one small file each."""

from __future__ import annotations

from casa_core.errors import DataError
from casa_core.types import Sample
from pipelines.evaluate.benchmarks.base import Benchmark
from pipelines.evaluate.benchmarks.live import Live
from pipelines.evaluate.benchmarks.vqa import Vqa

BENCHMARKS: tuple[Benchmark, ...] = (Live(), Vqa())
"""In order of preference: the first that accepts a source's first held-out sample is that source's."""


def benchmark_for(sample: Sample) -> Benchmark:
    """The first benchmark that accepts a sample.

    Raises:
        DataError: If none does.
    """
    for benchmark in BENCHMARKS:
        if benchmark.accepts(sample):
            return benchmark
    raise DataError(
        f"No benchmark can evaluate a model on samples like {sample.source}/{sample.sample_id}.",
        "It has neither a trained answer nor live frames.",
        "Leave the source out of the held-out split, or add a benchmark in pipelines/evaluate/benchmarks.",
    )
