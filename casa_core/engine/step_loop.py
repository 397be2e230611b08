"""The loop of an engine: answers and live streams join and leave at any step, and share every forward.

A step runs at most three forwards: prompts are read in pieces; frames and further prompts that have come are
read together; every running answer and caption gets one more token. Images are prepared and embedded ahead of
it (:mod:`casa_core.engine.image_encoder`). No kind of work waits for all of another: that is the share kept
for each.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.graphed_step import GraphedStep
from casa_core.decoding.kv_batch import Room
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.admission import Admission
from casa_core.engine.answer import Answer
from casa_core.engine.batch_steps import BatchSteps, Running
from casa_core.engine.events import Event
from casa_core.engine.image_encoder import ImageEncoder
from casa_core.engine.inputs import frame_chunk
from casa_core.engine.live_stream import LiveStream
from casa_core.engine.load import Load, LoadSnapshot
from casa_core.engine.requests import GenerationRequest
from casa_core.engine.settings import EngineSettings
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor

P = ParamSpec("P")
R = TypeVar("R")
LoopT = TypeVar("LoopT", bound="StepLoop")


def exclusive(call: Callable[Concatenate[LoopT, P], R]) -> Callable[Concatenate[LoopT, P], R]:
    """Refuse a method's call while another thread is in one of the engine's methods."""

    @wraps(call)
    def guarded(self: LoopT, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.in_use.acquire(blocking=False):
            raise RuntimeError(
                f"`{call.__name__}` was called while another thread used the engine: its calls are not "
                "thread-safe. Hand them to the thread that steps it, by a queue."
            )
        try:
            return call(self, *args, **kwargs)
        finally:
            self.in_use.release()

    return guarded


class StepLoop:
    """Runs answers and live streams of one model, step by step.

    Calls are not thread-safe; one during another thread's call is refused by a ``RuntimeError``. Only
    :meth:`forget` may be called from anywhere.

    Args:
        model: On its device; put into evaluation mode. It belongs to the engine from now on: its projections
            become views of larger matrices.
        processor: The checkpoint's own.
        settings: Its size and shares.
        decode: Keywords of :class:`DecodeStep`: ``compile``, ``quantize``.

    Attributes:
        in_use: Held during every call.

    Raises:
        ConfigError: If what these need is missing here.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        processor: CasaProcessor,
        settings: EngineSettings | None = None,
        **decode: Any,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.settings = settings or EngineSettings()
        step = DecodeStep(self.model, **decode)
        self.decode = GraphedStep(step) if self.settings.graphs else step
        self.load = Load()
        self.in_use = threading.RLock()
        room = self._room() if self.settings.preallocate else Room()
        self._slots = SlotPool(self.model, self.settings.slots, room=room, decode=self.decode)
        self._steps = BatchSteps(self._slots, self.settings.prefill_tokens, self.context, self.load)
        self._numbers = itertools.count()
        self._events: list[Event] = []
        self._forgotten: deque[int] = deque()
        self._closed = False
        self._woken = threading.Event()
        self._encoder = ImageEncoder(
            self.model,
            cache_tokens=self.settings.image_cache_tokens,
            batch=self.settings.encode_batch,
            threads=self.settings.threads,
            graphs=self.settings.graphs,
            load=self.load,
            wake=self._woken.set,
        )
        self._admission = Admission(
            self._steps,
            self._encoder,
            self.settings,
            context=self.context,
            images_withheld=self.model.config.images_withheld,
        )
        self._steps.ended = self._admission.release

    @property
    def context(self) -> int:
        """Text tokens of an answer with its prompt, and of an unbounded stream."""
        own = self.model.config.text_config.max_position_embeddings
        return min(self.settings.context or own, own)

    def _room(self) -> Room:
        """What every slot has from the first forward on: its text, and one picture of the largest size.

        A piece of a prompt that is padded to the longest of its forward is written beyond a row's own text.
        """
        side = self.processor.max_side
        fusion = self.model.config.fusion_settings
        return Room(
            text=self.context + self.settings.prefill_tokens,
            image_tokens=0 if fusion.inserts else self.processor.image_size(side, side).tokens,
            window_text=self.settings.prefill_tokens if fusion.attends_text else 0,
        )

    @exclusive
    def warm_up(self) -> float:
        """Run every kind of decode step once, before anything is asked of the engine; the seconds it took.

        It is for compiled steps and CUDA graphs, which the first requests would wait for.
        """
        started = time.perf_counter()
        black, blind = np.zeros((32, 32, 3), np.uint8), self.model.config.images_withheld
        frame = frame_chunk(black, self.processor, images_withheld=blind)
        self._slots.warm_up([frame, TokenChunk([self.processor.end_id])])
        return time.perf_counter() - started

    @exclusive
    def submit(self, request: GenerationRequest, *, streamed: bool = False) -> int:
        """Ask for an answer.

        Args:
            streamed: Give its text piece by piece, as deltas, before the result.

        Returns:
            The number of its events.

        Raises:
            Overloaded: If as many answers wait as may wait.
            DataError: If the engine is closed.
        """
        self._cancel_forgotten()
        self._admission.check_answer()
        answer = Answer(
            number=next(self._numbers),
            request=request,
            processor=self.processor,
            streamed=streamed,
            submitted=time.monotonic(),
        )
        self._join(answer)
        return answer.number

    @exclusive
    def current_load(self) -> LoadSnapshot:
        """What the engine holds now, for metrics: a walk over what runs, without a look at the device."""
        running = list(self._steps.running.values())
        streams = [one for one in running if isinstance(one, LiveStream)]
        used = [one.slot for one in running if one.slot is not None]
        windows = [self._slots.state(slot).window_state for slot in used]
        bounds = [one.bounds.limit for one in streams if one.slot is not None and one.bounds is not None]
        return LoadSnapshot(
            slots=self.settings.slots,
            slots_used=len(used),
            answers=len(running) - len(streams),
            answers_waiting=sum(one.slot is None for one in running if isinstance(one, Answer)),
            streams=len(streams),
            frames_waiting=sum(len(one.waiting) for one in streams),
            kv_tokens=sum(map(self._slots.kv_length, used)),
            kv_capacity=sum(bounds) + (self.settings.slots - len(bounds)) * self.context,
            image_tokens=sum(window.image_tokens for window in windows if window is not None),
            live_share=self.load.live.share,
            images_share=self.load.embedding.share,
            steps=self.load.steps,
            step_s=self.load.step_s,
            tokens=self.load.tokens,
            cached_tokens=self.load.cached_tokens,
        )

    @property
    def room_for_answer(self) -> bool:
        """Whether :meth:`submit` would take another answer."""
        return self._admission.room_for_answer

    @exclusive
    def cancel(self, number: int) -> None:
        """End an answer or a stream without further events; ending it twice is harmless."""
        if (one := self._steps.running.get(number)) is not None:
            self._admission.release(one)
        self._events = [event for event in self._events if event.sequence != number]
        self._steps.events = [event for event in self._steps.events if event.sequence != number]

    def forget(self, number: int) -> None:
        """:meth:`cancel` before the next step, callable at any time and from any thread.

        It is for what ends without a call, by garbage collection: that happens in the middle of a step too.
        """
        self._forgotten.append(number)

    @exclusive
    def step(self) -> list[Event]:
        """Advance everything by a step; what has happened since the last one."""
        self._advance()
        return self.take_events()

    @exclusive
    def take_events(self, number: int | None = None) -> list[Event]:
        """What has happened since the last step: :meth:`prompt`, :meth:`save` and :meth:`push_frame` may end
        captions or drop frames. Of the answer or stream ``number`` only, where one is given."""
        self._cancel_forgotten()
        events = [*self._events, *self._steps.events]
        others = [event for event in events if number is not None and event.sequence != number]
        self._events, self._steps.events = others, []
        return [event for event in events if number is None or event.sequence == number]

    @exclusive
    def events_of(self, numbers: Container[int]) -> list[Event]:
        """Advance by a step, waiting for images where nothing else is to be done, but leave the events of
        others for those who wait for them."""
        self._advance_when_ready()
        mine = [event for event in self._events if event.sequence in numbers]
        self._events = [event for event in self._events if event.sequence not in numbers]
        return mine

    @property
    def busy(self) -> bool:
        """Whether a step would do something now."""
        return bool(self._events or self._steps.events or self._forgotten) or self._has_work

    def wait(self, timeout_s: float | None = None, *, until: Callable[[], bool] | None = None) -> bool:
        """Wait until there is something to do; false after the time is over.

        Anything asked of the engine, any image that is ready and :meth:`wake` end the waiting.

        Args:
            until: Whether another thread wants something; looked at after each of its calls of ``wake``.
        """
        self._woken.clear()
        return self.busy or (until is not None and until()) or self._woken.wait(timeout_s)

    def wake(self) -> None:
        """End a :meth:`wait`; the one call that any thread may make."""
        self._woken.set()

    @exclusive
    def close(self) -> None:
        """End everything, and the threads; closing twice is harmless."""
        self._closed = True
        for number in list(self._steps.running):
            self.cancel(number)
        self._encoder.close()

    @property
    def _has_work(self) -> bool:
        return self._encoder.pending or self._admission.has_work or self._steps.has_work

    def _advance_when_ready(self) -> None:
        """Advance by a step, after a short wait for images where nothing else is to be done."""
        self._woken.clear()
        if not self._has_work:
            self._woken.wait(0.1)
        self._advance()

    def _advance(self) -> None:
        started = time.perf_counter()
        self._cancel_forgotten()
        self._admission.admit()
        self._encoder.run()
        self._admission.collect()
        self._admission.admit()
        self._steps.read_prompts()
        self._steps.read_turns()
        self._steps.decode()
        self.load.stepped(time.perf_counter() - started)
        self._events += self._steps.events
        self._steps.events = []

    def _cancel_forgotten(self) -> None:
        while self._forgotten:
            self.cancel(self._forgotten.popleft())

    def _join(self, one: Running) -> None:
        if self._closed:
            raise DataError("The engine is closed.", "It takes nothing any more.", "Make another engine.")
        self._admission.join(one)
        self._woken.set()
