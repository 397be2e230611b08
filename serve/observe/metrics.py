"""Metrics of one app, in a registry of its own: requests, answers, live sessions and frames, the engine.

Names, labels and units follow Prometheus's conventions; where vLLM has a metric, ours means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from casa_core.engine.load import LoadSnapshot
from serve.observe.exposition import text_of

FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)
PER_TOKEN_S = (
    *(0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5),
)
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 240)
CAPTION_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
LATE_S = (0, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""The first bucket holds what was on time."""

FINISH_REASONS = ("stop", "length", "refused", "cancelled", "error")
FRAME_OUTCOMES = ("captioned", "dropped", "refused", "lost")
SESSION_RESULTS = ("closed", "failed", "refused")
MOVE_KINDS = ("exact", "approximate")


class Metrics:
    """Everything that one app counts. Callable from its event loop.

    Args:
        models: Fingerprints of the served models, by their names.
    """

    def __init__(self, models: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self.refusals = self._counter(
            "casa_refusals", "Requests and messages refused, by error code.", "code"
        )
        self._requests()
        self._answers()
        self._live()
        info = self._gauge("casa_info", "1, with what is served as labels.", "model", "checkpoint")
        for model, checkpoint in models.items():
            info.labels(model, checkpoint).set(1)
        ProcessCollector(registry=self.registry)

    def render(self, load: LoadSnapshot | None) -> str:
        """All metrics as text.

        Args:
            load: The engine's; ``None`` if it did not answer.
        """
        return text_of([*self.registry.collect(), *engine_families(load)])

    def _requests(self) -> None:
        self.requests = self._counter("casa_http_requests", "HTTP requests answered.", "route", "status")
        self.request_seconds = self._histogram(
            "casa_http_request_seconds", "From a request's head to the end of its answer.", REQUEST_S, "route"
        )
        self.connections = self._gauge("casa_live_connections", "WebSocket connections that are open.")

    def _answers(self) -> None:
        self.answers_running = self._gauge("casa_answers_running", "Answers asked for and not finished.")
        self.answers = self._counter("casa_answers", "Answers ended, by reason.", "finish_reason")
        self.first_token_seconds = self._histogram(
            "casa_time_to_first_token_seconds",
            "From a request's arrival to the first token of its answer.",
            FIRST_TOKEN_S,
        )
        self.per_token_seconds = self._histogram(
            "casa_time_per_output_token_seconds",
            "Between two tokens of an answer after its first, on its average.",
            PER_TOKEN_S,
        )
        self.answer_seconds = self._histogram(
            "casa_answer_seconds", "From a request's arrival to the last token of its answer.", REQUEST_S
        )
        self.prompt_tokens = self._counter("casa_prompt_tokens", "Text tokens of answered prompts.")
        self.cached_tokens = self._counter("casa_prompt_cached_tokens", "Those that were not read again.")
        self.image_tokens = self._counter("casa_image_tokens", "Image tokens of answered prompts.")
        self.generated_tokens = self._counter("casa_generated_tokens", "Tokens generated.", "work")
        _expect(self.answers, FINISH_REASONS)
        _expect(self.generated_tokens, ("answer", "caption", "prompt"))

    def _live(self) -> None:
        self.sessions_open = self._gauge("casa_live_sessions", "Live sessions that are open.")
        self.sessions = self._counter("casa_live_sessions_ended", "Live sessions ended.", "result")
        self.session_seconds = self._counter("casa_live_session_seconds", "Their durations together.")
        self.frames = self._counter("casa_frames", "What became of live frames.", "outcome")
        self.on_time = self._counter("casa_captions_on_time", "Captions there at their frame's deadline.")
        self.caption_seconds = self._histogram(
            "casa_caption_seconds", "From a frame's arrival to the last token about it.", CAPTION_S
        )
        self.late_seconds = self._histogram(
            "casa_caption_late_seconds",
            "By how much a caption came after its frame's deadline; 0: on time.",
            LATE_S,
        )
        self.prompt_seconds = self._histogram(
            "casa_live_prompt_seconds", "From a further question in a session to its answer.", CAPTION_S
        )
        self.moves = self._counter("casa_session_moves", "Live sessions moved to another replica.", "kind")
        _expect(self.sessions, SESSION_RESULTS)
        _expect(self.frames, FRAME_OUTCOMES)
        _expect(self.moves, MOVE_KINDS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


def _expect(counter: Counter, values: tuple[str, ...]) -> None:
    """Show values that have not occurred as 0: a rate needs a value before the first."""
    for value in values:
        counter.labels(value)


_ENGINE: tuple[tuple[type[Metric], str, str, Callable[[LoadSnapshot], float]], ...] = (
    (GaugeMetricFamily, "slots", "Sequences that can have a KV cache at a time.", lambda one: one.slots),
    (GaugeMetricFamily, "slots_used", "Those that have one.", lambda one: one.slots_used),
    (GaugeMetricFamily, "answers", "Answers in the engine.", lambda one: one.answers),
    (GaugeMetricFamily, "answers_waiting", "Those without a slot.", lambda one: one.answers_waiting),
    (GaugeMetricFamily, "streams", "Live streams in the engine.", lambda one: one.streams),
    (GaugeMetricFamily, "frames_waiting", "Live frames not read yet.", lambda one: one.frames_waiting),
    (GaugeMetricFamily, "kv_tokens", "Tokens in the text KV of used slots.", lambda one: one.kv_tokens),
    (GaugeMetricFamily, "kv_capacity_tokens", "Tokens that fit into all.", lambda one: one.kv_capacity),
    (GaugeMetricFamily, "image_tokens", "Image tokens in their windows.", lambda one: one.image_tokens),
    (GaugeMetricFamily, "live_time_ratio", "Part of the last 10 s for streams.", lambda one: one.live_share),
    (GaugeMetricFamily, "images_time_ratio", "The same for images.", lambda one: one.images_share),
    (CounterMetricFamily, "steps", "Steps.", lambda one: one.steps),
    (CounterMetricFamily, "step_seconds", "Seconds in steps.", lambda one: one.step_s),
    (CounterMetricFamily, "tokens", "Tokens chosen.", lambda one: one.tokens),
)


def engine_families(load: LoadSnapshot | None) -> Iterator[Metric]:
    """The metrics of an engine: only that it is down where it did not answer."""
    yield GaugeMetricFamily(
        "casa_engine_up", "1 if the engine's thread took a call within seconds.", float(load is not None)
    )
    if load is None:
        return
    for family, name, text, value in _ENGINE:
        made: Any = family
        yield made(f"casa_engine_{name}", text, value=value(load))
