"""How often a judge prefers a commentary to another; verdicts come from ``pipelines.evaluate.judge``."""

from __future__ import annotations

from pipelines.evaluate.metrics.base import Metric, Truth


class WinRate(Metric):
    """Share of judgements that were won, two for each pair, one in each order; a tie is no win."""

    name = "win_rate"
    version = "1"
    source = "LiveCC's evaluation/livesports3kcc/llm_judge.py"
    needs_judge = True

    def score(self, answer: str, truth: Truth) -> float:
        """Without a judge: 1 for the person's own words, else 0."""
        return float(answer.strip() == truth.answers[0].strip())
