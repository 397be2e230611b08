"""All metrics by name, for results, and for a benchmark of one's own."""

from __future__ import annotations

from casa_core.errors import ConfigError
from pipelines.evaluate.metrics.anls import Anls, AnlsStar
from pipelines.evaluate.metrics.base import Metric
from pipelines.evaluate.metrics.choice import Ai2dMatch, Choice, ChoiceByCategory
from pipelines.evaluate.metrics.cider import Cider
from pipelines.evaluate.metrics.exact import ExactMatch, GqaMatch, RealWorldMatch
from pipelines.evaluate.metrics.mme import Mme
from pipelines.evaluate.metrics.ocrbench import OcrBench
from pipelines.evaluate.metrics.ovobench import OvoBench
from pipelines.evaluate.metrics.relaxed import RelaxedAccuracy
from pipelines.evaluate.metrics.vqa_accuracy import VqaAccuracy
from pipelines.evaluate.metrics.win_rate import WinRate
from pipelines.text_format import did_you_mean

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ExactMatch(),
        Choice(),
        ChoiceByCategory(),
        Anls(),
        AnlsStar(),
        RelaxedAccuracy(),
        VqaAccuracy(),
        OcrBench(),
        Mme(),
        GqaMatch(),
        RealWorldMatch(),
        Ai2dMatch(),
        Cider(),
        OvoBench(),
        WinRate(),
    )
}


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        ConfigError: If there is none; names the closest.
    """
    if name in METRICS:
        return METRICS[name]
    raise ConfigError(
        f"There is no metric {name!r}.",
        f"There are {', '.join(METRICS)}.",
        did_you_mean(name, METRICS, "Take one of these."),
    )
