"""The held-out splits of a recipe's own sources: their questions and clips, their score boards.

A source's first held-out sample says what the source is; a further kind is one small file and one entry here.
"""

from __future__ import annotations

from casa_core.errors import DataError
from casa_core.types import Sample
from pipelines.evaluate.held_out.board import Benchmark
from pipelines.evaluate.held_out.live import Live
from pipelines.evaluate.held_out.vqa import Vqa

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
        "Leave the source out of the held-out split, or add a kind to pipelines/evaluate/held_out.",
    )
