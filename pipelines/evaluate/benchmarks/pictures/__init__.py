"""The paper's benchmarks on pictures, one file each."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.benchmarks.pictures.ai2d import AI2D
from pipelines.evaluate.benchmarks.pictures.chartqa import CHARTQA
from pipelines.evaluate.benchmarks.pictures.docvqa import DOCVQA
from pipelines.evaluate.benchmarks.pictures.gqa import GQA
from pipelines.evaluate.benchmarks.pictures.infovqa import INFOVQA
from pipelines.evaluate.benchmarks.pictures.mme import MME
from pipelines.evaluate.benchmarks.pictures.ocrbench import OCRBENCH
from pipelines.evaluate.benchmarks.pictures.realworldqa import REALWORLDQA
from pipelines.evaluate.benchmarks.pictures.textvqa import TEXTVQA

PICTURES: tuple[Benchmark, ...] = (
    CHARTQA,
    DOCVQA,
    INFOVQA,
    OCRBENCH,
    TEXTVQA,
    REALWORLDQA,
    AI2D,
    GQA,
    MME,
)
"""In the order of the paper's tables."""
