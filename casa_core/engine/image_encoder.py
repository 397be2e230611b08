"""Pictures and frames → image tokens: prepared and embedded beside the decoding, in batches, each only once.

Two kinds of work precede the language model. *Preparing* (decoding a file, resizing, cutting into patches,
tokenizing) is the host's; *embedding* (the vision tower) is the device's. With threads neither is waited for
by a step of the engine; without, :meth:`ImageEncoder.run` does both, in order.

Shape suffixes: P patches, E numbers of a patch, N image tokens, C width.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from casa_core.decoding.graphed_tower import GraphedTower
from casa_core.decoding.plan import TokenChunk
from casa_core.engine.load import Load
from casa_core.heap import trim_heap
from casa_core.inputs import ImageInputs
from casa_core.model import CasaForConditionalGeneration

ANSWERS_EVERY = 4
"""Of so many batches one is for the images of answers where frames wait too."""

Prepare = Callable[[], TokenChunk]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Text and images, ready to be read.

    Attributes:
        chunk: With its images embedded.
        keys: A key of each image's patches: of its pixels, and of how they enter the model.
    """

    chunk: TokenChunk
    keys: tuple[Hashable, ...]


class ImageCache:
    """The most recently used image tokens, by their images' keys.

    Args:
        tokens: Image tokens kept, of all images together; 0 keeps none.
    """

    def __init__(self, tokens: int) -> None:
        self._limit = tokens
        self._held: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()
        self.hits = 0

    def get(self, key: Hashable) -> torch.Tensor | None:
        """An image's tokens, (N, C)."""
        with self._lock:
            found_NC = self._held.get(key)
            if found_NC is not None:
                self._held.move_to_end(key)
                self.hits += 1
            return found_NC

    def put(self, key: Hashable, features_NC: torch.Tensor) -> None:
        """Keep an image's tokens, and drop those that were not used for longest."""
        if len(features_NC) > self._limit:
            return
        with self._lock:
            if key not in self._held:
                self._held[key] = features_NC
                self._tokens += len(features_NC)
            while self._tokens > self._limit:
                _, dropped_NC = self._held.popitem(last=False)
                self._tokens -= len(dropped_NC)


def image_key(patches_PE: torch.Tensor, grid: tuple[int, int]) -> Hashable:
    """A key of an image's patches."""
    pixels = patches_PE.contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(pixels.data, digest_size=16).digest(), grid


@dataclass(slots=True)
class _Input:
    """Text and images on their way: ``found_NC`` holds what is embedded of its images so far."""

    chunk: TokenChunk
    keys: tuple[Hashable, ...]
    found_NC: dict[int, torch.Tensor]
    done: Future[Encoded]


@dataclass(order=True, slots=True)
class _Job:
    """One image to embed; those that are due first come first."""

    due: float
    number: int
    live: bool = field(compare=False)
    whole: _Input = field(compare=False)
    index: int = field(compare=False)

    @property
    def grid(self) -> tuple[int, int]:
        return self.whole.chunk.grids[self.index]

    @property
    def key(self) -> Hashable:
        return self.whole.keys[self.index]


_FRAMES, _PROMPTS, _LARGE = "casa-frames", "casa-prompts", "casa-large"
_THREADS = {_FRAMES: 2, _PROMPTS: 1, _LARGE: 1}
"""Threads that prepare, by kind of work. Frames have their own: no picture of an answer, however large, is
prepared before them; and no prompt waits for another's pictures of many megapixels."""


def _come_last() -> None:
    """Let this thread have a processor only where frames, the tower and the steps leave one.

    A picture of 40 megapixels or a text of megabytes would take one of few from them.
    """
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class ImageEncoder:
    """Embeds images in the order in which they are due, those of one size together.

    Args:
        model: Whose tower embeds them.
        cache_tokens: Image tokens kept of images that may come again.
        batch: Images embedded in one call, at most.
        threads: Work in threads; otherwise in :meth:`run`.
        load: Counts the time of the tower.
        wake: Called, from any thread, whenever something is done.
        graphs: Run the tower by CUDA graphs.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        *,
        cache_tokens: int,
        batch: int,
        threads: bool,
        load: Load,
        wake: Callable[[], None],
        graphs: bool = False,
    ) -> None:
        self._model, self._load, self._wake, self._size = model, load, wake, batch
        self._tower = GraphedTower(model.vision_tower) if graphs else None
        self.cache = ImageCache(cache_tokens)
        self._waiting: list[_Job] = []
        self._unprepared: deque[Callable[[], None]] = deque()
        self._numbers = itertools.count()
        self._condition = threading.Condition()
        self._batches = 0
        self._closed = False
        self._preparing: dict[str, ThreadPoolExecutor] = {}
        for kind, count in _THREADS.items() if threads else ():
            initializer = None if kind == _FRAMES else _come_last
            self._preparing[kind] = ThreadPoolExecutor(
                count, thread_name_prefix=kind, initializer=initializer
            )
        self._thread: threading.Thread | None = None
        if threads:
            self._thread = threading.Thread(target=self._work, name="casa-embed", daemon=True)
            self._thread.start()

    def encode(self, prepare: Prepare, *, due: float, live: bool, large: bool = False) -> Future[Encoded]:
        """Prepare text and images, and embed the images.

        Args:
            prepare: Makes a chunk with patches; what it raises, the future raises.
            due: When they are needed, seconds of any one clock.
            live: They are a stream's.
            large: Preparing takes long, and memory that is given back to the system afterwards.
        """
        done: Future[Encoded] = Future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                self._enqueue(prepare(), done, due, live)
            except Exception as error:  # handed to the caller that waits for it
                self._finish(done, error)
            if large:
                trim_heap()

        if self._preparing:
            self._preparing[_FRAMES if live else _LARGE if large else _PROMPTS].submit(work)
        else:
            self._unprepared.append(work)
        return done

    def run(self) -> None:
        """Without threads: prepare and embed everything that was asked for."""
        while self._thread is None and (self._unprepared or self._waiting):
            while self._unprepared:
                self._unprepared.popleft()()
            if self._waiting:
                self._embed(self._next_batch())

    @property
    def pending(self) -> bool:
        """Whether :meth:`run` has work to do."""
        return bool(self._unprepared)

    def close(self) -> None:
        """Stop the threads; what waits is cancelled."""
        for pool in self._preparing.values():
            pool.shutdown(cancel_futures=True)
        with self._condition:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._condition.notify()
        for job in waiting:
            job.whole.done.cancel()
        if self._thread is not None:
            self._thread.join()

    def _enqueue(self, chunk: TokenChunk, done: Future[Encoded], due: float, live: bool) -> None:
        keys = tuple(image_key(*image) for image in zip(chunk.patches_PE, chunk.grids, strict=True))
        known = {index: self.cache.get(key) for index, key in enumerate(keys)}
        found_NC = {index: one_NC for index, one_NC in known.items() if one_NC is not None}
        whole = _Input(chunk, keys, found_NC, done)
        if len(found_NC) == len(keys):
            self._complete(whole)
            return
        with self._condition:
            self._waiting += [
                _Job(due, next(self._numbers), live, whole, index)
                for index in range(len(keys))
                if index not in found_NC
            ]
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not (self._waiting or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                batch = self._next_batch()
            self._embed(batch)

    def _next_batch(self) -> list[_Job]:
        """The most urgent image, and others of its size; a share of the turns is kept for answers."""
        self._waiting = [job for job in self._waiting if not job.whole.done.done()]
        live = [job for job in self._waiting if job.live]
        others = [job for job in self._waiting if not job.live]
        self._batches += 1
        turn = others if others and (not live or self._batches % ANSWERS_EVERY == 0) else live
        if not turn:
            return []
        first = min(turn)
        same = sorted(job for job in turn if job.grid == first.grid)[: self._size]
        taken = {job.number for job in same}
        self._waiting = [job for job in self._waiting if job.number not in taken]
        return same

    def _embed(self, jobs: Sequence[_Job]) -> None:
        unique = {job.key: job for job in jobs}
        known = {key: one_NC for key in unique if (one_NC := self.cache.get(key)) is not None}
        new = [job for key, job in unique.items() if key not in known]
        started = time.perf_counter()
        try:
            images = [(job.whole.chunk.patches_PE[job.index], job.grid) for job in new]
            each_NC = embed(images, self._model, self._tower) if images else []
        except Exception as error:  # handed to the caller that waits for the image
            if len(jobs) == 1:
                self._finish(jobs[0].whole.done, error)
            else:
                for job in jobs:
                    self._embed([job])
            return
        if any(job.live for job in jobs):
            self._load.embedding.add(time.perf_counter() - started)
        for job, features_NC in zip(new, each_NC, strict=True):
            known[job.key] = features_NC
            self.cache.put(job.key, features_NC)
        for job in jobs:
            job.whole.found_NC[job.index] = known[job.key]
            if len(job.whole.found_NC) == len(job.whole.keys):
                self._complete(job.whole)

    def _complete(self, whole: _Input) -> None:
        features_NC = [whole.found_NC[index] for index in range(len(whole.keys))]
        self._finish(
            whole.done, Encoded(replace(whole.chunk, patches_PE=(), features_NC=features_NC), whole.keys)
        )

    def _finish(self, done: Future[Encoded], outcome: Encoded | Exception) -> None:
        # False where it was cancelled, or has failed already by another image.
        if not done.done() and done.set_running_or_notify_cancel():
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)
        self._wake()


@torch.inference_mode()
def embed(
    images: Sequence[tuple[torch.Tensor, tuple[int, int]]],
    model: CasaForConditionalGeneration,
    tower: GraphedTower | None = None,
) -> list[torch.Tensor]:
    """The tokens of some images, (N, C) each, as the language model takes them; one call of the tower.

    Args:
        images: Patches (P, E) and grid of each.
        tower: Runs the model's.
    """
    patches_PE = torch.cat([patches_PE for patches_PE, _ in images]).to(model.device)
    dtype = model.lm_head.weight.dtype
    features_NC = model.embed_images(ImageInputs(patches_PE, [grid for _, grid in images]), dtype, tower)
    assert features_NC is not None, "images were given"
    fusion, merge = model.config.fusion_settings, model.config.vision_config.spatial_merge_size
    sizes = [
        fusion.qformer_queries if fusion.kind == "qformer" else rows * columns // merge**2
        for _, (rows, columns) in images
    ]
    # Copies: a view would keep the whole batch for as long as one image is in use.
    return [part.clone() for part in features_NC.split(sizes)] if len(images) > 1 else [features_NC]
