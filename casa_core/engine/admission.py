"""Who has a slot: answers and streams that wait for one, what they need before they are read, and the end of
each."""

from __future__ import annotations

import itertools
import time
from collections import deque
from concurrent.futures import Future

from casa_core.engine.answer import Answer
from casa_core.engine.batch_steps import BatchSteps, Running
from casa_core.engine.events import FrameRefused, Overloaded
from casa_core.engine.image_encoder import Encoded, ImageEncoder
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.live_stream import LiveStream
from casa_core.engine.load import WINDOW_S
from casa_core.engine.prefixes import Prefixes
from casa_core.engine.settings import EngineSettings
from casa_core.errors import MediaError

LARGE_PIXELS = 1 << 24
"""Pixels of an answer's images, all together, that are many: more than one picture of a phone has."""


class Admission:
    """Gives slots to answers and streams, streams first, and takes them back.

    Args:
        steps: What runs.
        context: Text tokens of an answer with its prompt.
        images_withheld: As the model's configuration has it.
    """

    def __init__(
        self,
        steps: BatchSteps,
        encoder: ImageEncoder,
        settings: EngineSettings,
        *,
        context: int,
        images_withheld: bool,
    ) -> None:
        self._steps, self._encoder, self._settings = steps, encoder, settings
        self._slots, self._load = steps.slots, steps.load
        self._context, self._withheld = context, images_withheld
        self._waiting: deque[Running] = deque()
        self._prefixes = Prefixes()

    @property
    def has_work(self) -> bool:
        """Whether :meth:`admit` or :meth:`collect` would do something."""
        free = bool(self._slots.free_slots)
        return any(
            (one.encoding is not None and one.encoding.done())
            or (one.slot is None and free and (isinstance(one, LiveStream) or one.encoding is None))
            or (isinstance(one, LiveStream) and any(frame.has_failed for frame in one.waiting))
            for one in self._steps.running.values()
        )

    @property
    def room_for_answer(self) -> bool:
        """Whether another answer may wait."""
        return self._without_slot < self._settings.waiting

    @property
    def _without_slot(self) -> int:
        """Answers that wait, but for those that have a free slot before them."""
        return len([one for one in self._waiting if isinstance(one, Answer)]) - self._slots.free_slots

    def check_answer(self) -> None:
        """Refuse an answer that would have to wait too long.

        Raises:
            Overloaded: If as many answers wait as may wait.
        """
        if not self.room_for_answer:
            waiting = self._without_slot
            raise Overloaded(
                f"{waiting} answers are waiting already.",
                f"The engine runs {self._settings.slots} sequences at a time.",
                self._load.retry_after_s(waiting),
            )

    def check_stream(self) -> None:
        """Refuse a stream for which there is no slot, or no time.

        Raises:
            Overloaded: See there.
        """
        streams = sum(isinstance(one, LiveStream) for one in self._steps.running.values())
        most = self._settings.stream_slots
        if streams >= most:
            raise Overloaded(
                f"{streams} live streams are open already.",
                f"The engine has {self._settings.slots} slots, {most} of them for streams.",
                WINDOW_S,
            )
        share = self._load.share_with(streams)
        # In lockstep the caller waits for each frame, and time says nothing about what the engine can do.
        if self._settings.threads and share > self._settings.live_share:
            raise Overloaded(
                f"{streams} live streams take the engine's time.",
                f"With one more they would need {share:.0%} of it, and "
                f"{self._settings.live_share:.0%} are theirs.",
                WINDOW_S,
            )

    def join(self, one: Running) -> None:
        """Add an answer or a stream, which gets a slot as soon as there is one."""
        self._steps.running[one.number] = one
        self._waiting.append(one)

    def admit(self) -> None:
        """Give slots to those who wait, and have the prompts of the next answers prepared."""
        while self._waiting and self._slots.free_slots:
            streams = [one for one in self._waiting if isinstance(one, LiveStream)]
            answers = [one for one in self._waiting if isinstance(one, Answer) and one.prompt is not None]
            if not (streams or answers):
                break
            one = (streams or answers)[0]
            try:
                self._place(one)
            except Exception as error:  # its settings or its snapshot cannot be used here
                self._steps.fail(one, error)
            else:
                self._waiting.remove(one)
        for one in self._first_answers():
            if one.encoding is None and one.prompt is None:
                self._prepare(one)

    def collect(self) -> None:
        """Take what has been prepared."""
        for one in list(self._steps.running.values()):
            if one.encoding is not None and one.encoding.done():
                encoding, one.encoding = one.encoding, None
                if (error := encoding.exception()) is not None:
                    self._steps.fail(one, _as_exception(error))
                    continue
                one.prompt = encoding.result()
            if isinstance(one, LiveStream):
                self._drop_refused(one)

    def release(self, one: Running, *, broken: bool = False) -> None:
        """End an answer or a stream: its slot is free, and nothing is prepared for it.

        Args:
            broken: Its KV cache may hold numbers that are not finite.
        """
        del self._steps.running[one.number]
        if one in self._waiting:
            self._waiting.remove(one)
        if one.encoding is not None and not self._is_shared(one.encoding):
            one.encoding.cancel()
        if isinstance(one, LiveStream):
            for frame in one.waiting:
                frame.encoding.cancel()
        if one.slot is None:
            return
        slot, one.slot = one.slot, None
        if isinstance(one, Answer) and one.finished and one.prompt is not None:
            self._slots.free(slot, keep=True)
            self._prefixes.keep(slot, one.prompt, one.ids, self._slots.state(slot).text_tokens)
            self._load.finished.add(time.monotonic() - one.submitted)
        else:
            self._slots.free(slot, broken=broken)

    def _place(self, one: Running) -> None:
        stops = one.stop_ids
        if isinstance(one, LiveStream):
            one.slot = self._slots.allocate(one.settings.sampling, stop_ids=stops, bounds=one.bounds)
            if one.saved is not None:
                self._slots.restore(one.slot, one.saved.sequence, one.saved.sampler)
                one.saved = None
        else:
            assert one.prompt is not None
            sequences = self._slots.sequences
            prefix = self._prefixes.find(one.prompt, self._slots.warm_slots, sequences)
            warm = None if prefix is None else prefix.slot
            one.slot = self._slots.allocate(one.request.sampling, stop_ids=stops, warm=warm)
            if prefix is not None:
                sequences.truncate(prefix.slot, prefix.tokens, before_image=prefix.before_image)
                one.read = one.cached_tokens = prefix.tokens
        self._prefixes.forget(one.slot)

    def _prepare(self, answer: Answer) -> None:
        request = answer.request
        most = request.sampling.max_new_tokens
        for other in self._first_answers():  # one of several answers to one request decodes its pictures
            shared = other.encoding is not None and other.request.sampling.max_new_tokens == most
            if shared and other.request.sample == request.sample:
                answer.encoding = other.encoding
                return
        answer.encoding = self._encoder.encode(
            lambda: prompt_chunk(
                request.sample,
                answer.processor,
                images_withheld=self._withheld,
                context=self._context,
                answer=most,
            ),
            due=answer.submitted,
            live=False,
            large=request.pixels > LARGE_PIXELS,
        )

    def _first_answers(self) -> list[Answer]:
        """Those of the next answers that may be prepared."""
        first = itertools.islice(self._waiting, self._settings.slots)
        return [one for one in first if isinstance(one, Answer)]

    def _is_shared(self, encoding: Future[Encoded]) -> bool:
        return any(one.encoding is encoding for one in self._first_answers())

    def _drop_refused(self, stream: LiveStream) -> None:
        for frame in list(stream.waiting):
            if frame.has_failed:
                error = frame.encoding.exception()
                assert error is not None
                stream.waiting.remove(frame)
                refused = FrameRefused(frame.timestamp, _as_exception(error))
                self._steps.note(stream, [refused])
                if not isinstance(error, MediaError | ValueError):
                    self._steps.fail(stream, refused.error)
                    return


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(str(error))
