"""The forwards of one step: pieces of prompts, frames that have come, one token of everything that runs.

Shape suffixes: N image tokens, C width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

from casa_core.decoding.plan import TokenChunk
from casa_core.engine.answer import Answer
from casa_core.engine.events import Event, Failed, Outcome
from casa_core.engine.live_stream import LiveStream
from casa_core.engine.load import Load
from casa_core.engine.sampling import LogitsError
from casa_core.engine.slot_pool import SlotPool
from casa_core.errors import DataError

Running: TypeAlias = Answer | LiveStream

BESIDE_STREAMS = 8
"""While streams are open, prompts have this part of the budget: words about a frame take several steps."""
PROMPTS_AT_ONCE = 4
"""Prompts that share the budget of a step: a short one does not wait for all of a long one before it."""


class BatchSteps:
    """Everything that runs, by number, and the forwards that advance it.

    Args:
        slots: Their KV caches.
        budget: Tokens, those of images included, that a forward reads of prompts or frames.
        context: Text tokens of an unbounded stream.
        load: Counts what happens.

    Attributes:
        running: Answers and streams by number, oldest first.
        events: What has happened since they were taken.
        ended: Called with an answer or a stream whose slot is to be freed, and whether it is ``broken``.
    """

    def __init__(self, slots: SlotPool, budget: int, context: int, load: Load) -> None:
        self.slots, self.load = slots, load
        self.running: dict[int, Running] = {}
        self.events: list[Event] = []
        self.ended: Callable[..., None] | None = None
        self._budget, self._context = budget, context

    @property
    def has_work(self) -> bool:
        """Whether a forward would be run now."""
        return any(
            one.unread is not None or one.unread_prompt or (isinstance(one, LiveStream) and one.ready)
            for one in self.running.values()
            if one.slot is not None
        )

    def note(self, one: Running, outcomes: Iterable[Outcome]) -> None:
        """Have outcomes come out of the step as events."""
        for outcome in outcomes:
            self.load.count(outcome)
            self.events.append(Event(one.number, outcome))

    def fail(self, one: Running, error: Exception) -> None:
        """End an answer or a stream by an error."""
        self._end(one, broken=True)
        self.note(one, [Failed(error)])

    def read_prompts(self) -> None:
        """Read a piece of each of the oldest prompts, of equal shares of the budget.

        Streams come first: what they begin with is short, and their frames wait for it. While streams are
        open prompts have an eighth of the budget: a frame may come at any moment, and its words take several
        steps.
        """
        streams = any(isinstance(one, LiveStream) for one in self.running.values())
        budget = max(self._budget // BESIDE_STREAMS, 1) if streams else self._budget
        reading = [one for one in self.running.values() if one.slot is not None and one.unread_prompt]
        reading.sort(key=lambda one: (isinstance(one, Answer), one.number))
        pieces: dict[int, TokenChunk] = {}
        # Rows are padded to the longest, so what one does not need of its share is of no use to another.
        share = budget // max(min(len(reading), PROMPTS_AT_ONCE, budget), 1)
        for one in reading:
            whole = one.next_chunk(share)
            piece = whole.cut(0, whole.within(share))
            if piece.cost > share and pieces:
                continue  # a picture larger than a share is read alone, once its prompt is the oldest
            pieces[one.number] = piece
            if piece.cost > share or (len(pieces) + 1) * share > budget:
                break
        self._read(pieces)

    def finish_reading(self, stream: LiveStream) -> None:
        """Read the whole of what a stream begins with; by an error it ends."""
        while stream.prompt is not None and stream.number in self.running:
            piece = stream.next_chunk(self._budget)
            self._read({stream.number: piece.cut(0, piece.within(self._budget))})

    def read_turns(self) -> None:
        """Read the frames and further prompts that have come, those due first as far as the budget goes."""
        ready = [one for one in self.running.values() if isinstance(one, LiveStream) and one.ready]
        ready.sort(key=lambda stream: (stream.first_due, stream.number))
        turns: dict[int, TokenChunk] = {}
        cost = 0
        for stream in ready:
            turn = stream.next_turn()
            if (full := self._full(stream, turn)) is not None:
                refused = stream.refuse_turn(full)
                self.note(stream, refused)
                if isinstance(refused[0], Failed):
                    self._end(stream)
                continue
            if turns and cost + turn.cost > self._budget:
                break
            stream.begin_turn()
            turns[stream.number] = turn
            cost += turn.cost
        frames = {number for number in turns if not self._stream(number).answering}
        started = time.perf_counter()
        self._run(turns, set(turns), frames)
        self.load.live.add(time.perf_counter() - started)

    def decode(self) -> None:
        """One more token of every running answer and caption."""
        tokens = {
            number: TokenChunk([one.unread])
            for number, one in self.running.items()
            if one.slot is not None and one.unread is not None and not one.unread_prompt
        }
        started = time.perf_counter()
        live = sum(isinstance(self.running[number], LiveStream) for number in tokens)
        self._run(tokens, set(tokens))
        self.load.live.add((time.perf_counter() - started) * live / max(len(tokens), 1))

    def _read(self, pieces: dict[int, TokenChunk]) -> None:
        """Read pieces of prompts; a token follows the last piece of an answer's."""
        last: set[int] = set()
        begun: list[LiveStream] = []
        for number, piece in pieces.items():
            one = self.running[number]
            one.read += len(piece.ids)
            assert one.prompt is not None
            if one.read < len(one.prompt.chunk.ids):
                continue
            if isinstance(one, Answer):
                last.add(number)
            else:
                begun.append(one)
        self._run(pieces, last)
        for stream in begun:
            stream.prompt = None

    def _run(
        self, chunks: dict[int, TokenChunk], choose: Collection[int], frames: Collection[int] = ()
    ) -> None:
        """One forward; the tokens chosen in it go to their answers and captions.

        Args:
            chunks: What to append, by number.
            choose: For which of them a token follows.
            frames: Which of them are frames.
        """
        if not chunks:
            return
        slot_of = {number: self._slot(number) for number in chunks}
        states = self.slots.sequences.states
        dropped = {number: states[slot].dropped for number, slot in slot_of.items()}
        try:
            tokens, faults, logprobs = self.slots.run(
                {slot_of[number]: chunk for number, chunk in chunks.items()}, {slot_of[n] for n in choose}
            )
        except Exception as error:  # what the forward left half done goes with its sequences
            for number in chunks:
                self.fail(self.running[number], error)
            return
        self.load.tokens += len(tokens)
        now = time.monotonic()
        for number, chunk in chunks.items():
            one, slot = self.running[number], slot_of[number]
            if isinstance(one, LiveStream):
                one.note_read(chunk.ids, states[slot].dropped - dropped[number], frame=number in frames)
            if slot in faults:
                self.fail(one, LogitsError({slot: faults[slot]}))
            elif slot in tokens:
                self.note(one, one.take(tokens[slot], now, logprobs.get(slot)))
                if isinstance(one, Answer) and one.finished:
                    self._end(one)

    def _full(self, stream: LiveStream, turn: TokenChunk) -> DataError | None:
        """Why an unbounded stream has no room for a turn and the words about it; ``None``: it has."""
        fusion = self.slots.model.config.fusion_settings
        inserted = sum(len(one_NC) for one_NC in turn.features_NC) if fusion.inserts else 0
        held = self.slots.kv_length(self._slot(stream.number))
        words = stream.most_words(answering=bool(stream.prompts))
        if stream.bounds is not None or held + len(turn.ids) + inserted + words <= self._context:
            return None
        return DataError(
            f"The stream's text has reached the model's context of {self._context} tokens.",
            f"{held} tokens were read or generated so far.",
            "Open a new session (it continues from the next frame), or one with bounded text KV.",
        )

    def _end(self, one: Running, *, broken: bool = False) -> None:
        assert self.ended is not None
        self.ended(one, broken=broken)

    def _stream(self, number: int) -> LiveStream:
        stream = self.running[number]
        assert isinstance(stream, LiveStream)
        return stream

    def _slot(self, number: int) -> int:
        slot = self.running[number].slot
        assert slot is not None, "it has a slot"
        return slot
