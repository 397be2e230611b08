"""All benchmarks by name: the paper's, and two beyond it."""

from __future__ import annotations

from casa_core.errors import ConfigError
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.benchmarks.pictures import PICTURES
from pipelines.evaluate.benchmarks.streams import STREAMS
from pipelines.evaluate.benchmarks.videos import VIDEOS
from pipelines.text_format import did_you_mean

CATALOGUE: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (*PICTURES, *VIDEOS, *STREAMS)}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ConfigError: If there is none; names the closest.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise ConfigError(
        f"There is no benchmark {name!r}.",
        f"There are {', '.join(CATALOGUE)}.",
        did_you_mean(name, CATALOGUE, "Take one of these, or the YAML file of one of your own."),
    )
