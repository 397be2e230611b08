"""The paper's benchmarks on videos, one file each."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.benchmarks.videos.mlvu import MLVU
from pipelines.evaluate.benchmarks.videos.mvbench import MVBENCH
from pipelines.evaluate.benchmarks.videos.nextqa import NEXTQA
from pipelines.evaluate.benchmarks.videos.perceptiontest import PERCEPTIONTEST
from pipelines.evaluate.benchmarks.videos.videomme import VIDEOMME
from pipelines.evaluate.benchmarks.videos.videomme_subtitles import VIDEOMME_SUBTITLES

VIDEOS: tuple[Benchmark, ...] = (
    VIDEOMME,
    VIDEOMME_SUBTITLES,
    NEXTQA,
    PERCEPTIONTEST,
    MVBENCH,
    MLVU,
)
"""In the order of the paper's table."""
