"""Benchmarks about videos as they are watched: live commentary, and questions at a moment of a video."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.benchmarks.streams.livesports import LIVESPORTS
from pipelines.evaluate.benchmarks.streams.ovobench import OVOBENCH
from pipelines.evaluate.benchmarks.streams.streamingbench import STREAMINGBENCH

STREAMS: tuple[Benchmark, ...] = (LIVESPORTS, STREAMINGBENCH, OVOBENCH)
"""The paper's first; the others are beyond it."""
