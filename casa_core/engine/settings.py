"""How an engine is sized, and how answers and live streams share it."""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.errors import ConfigError
from casa_core.media.limits import MAX_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The engine's size and shares.

    In every step, the frames that have come, a piece of the prompts and one token of every running answer
    and caption are each given one forward: none waits for all of another.

    Attributes:
        slots: Sequences (answers and streams) that have a KV cache at a time.
        answer_slots: Those of them that streams may not take.
        waiting: Answers that may wait for a slot.
        context: Text tokens of an answer with its prompt, and of an unbounded stream; ``None``: the model's
            context.
        preallocate: Allocate every slot's memory at the first forward
            (:class:`casa_core.decoding.kv_batch.Room` has the formula), instead of as it is needed.
        prefill_tokens: Tokens, those of images included, that one step reads of prompts, and of frames: what
            a long prompt adds to a step is bounded by it.
        queued_frames: Frames of a stream that may wait; the oldest is dropped for one more.
        max_pixels: Pixels of a live frame before it is resized; one with more is refused.
        image_cache_tokens: Image tokens kept of pictures that may come again.
        encode_batch: Images of one size that are embedded in one call.
        graphs: Record decode steps and the vision tower as CUDA graphs; best with ``preallocate``, as steps
            are recorded again where a cache has grown.
        live_share: Share of its time that live streams may take before another is refused, where ``threads``
            are used; infinite where streams have all the time they need, as in an evaluation.
        threads: Prepare and embed images in threads of their own, so that no step waits for them. Without,
            a step does it: for evaluation and tests.

    Raises:
        ConfigError: If a number is too small.
    """

    slots: int = 16
    answer_slots: int = 1
    waiting: int = 64
    context: int | None = None
    preallocate: bool = False
    prefill_tokens: int = 512
    queued_frames: int = 4
    max_pixels: int = MAX_PIXELS
    image_cache_tokens: int = 16_384
    encode_batch: int = 8
    graphs: bool = False
    live_share: float = 0.9
    threads: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("slots", 1),
            ("answer_slots", 0),
            ("waiting", 1),
            ("prefill_tokens", 1),
            ("queued_frames", 1),
            ("max_pixels", 1),
            ("image_cache_tokens", 0),
            ("encode_batch", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"The engine's `{name}` is {getattr(self, name)}.",
                    "The engine could not work with so few.",
                    f"Set it to {least} or more.",
                )
        if self.answer_slots >= self.slots > 1:
            raise ConfigError(
                f"{self.answer_slots} of {self.slots} slots are kept for answers.",
                "None would be left for streams.",
                "Lower `answer_slots`, or raise `slots`.",
            )

    @property
    def stream_slots(self) -> int:
        """Slots that streams may take."""
        return max(self.slots - self.answer_slots, 1)
