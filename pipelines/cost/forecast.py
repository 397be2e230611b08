"""Forecast of preparing a corpus, before it is read in full: sequences, tokens, bytes and time.

It follows from a listing (numbers of records and their mean sizes) and the cluster's rates. Every number that
is not counted is an :class:`Estimate` with a range, and ranges add up without cancelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from casa_core.media.images import ImageSettings
from pipelines.cost.listing import Listing, PictureSize, SourceListing

GIGABIT = 1e9 / 8
"""Bytes."""
PACKING_OVERHEAD = 0.005
"""Expected share of sequences above the lower bound: the most that the packer's tests allow."""
NETWORK_SHARE = 0.7
"""Expected share of the network's line rate; assumed."""
CLEAN_ROW_BYTES = 220
"""Bytes per clean row without its text and media: ids, offsets, sizes, hashes."""
TEXT_TOKEN_BYTES = 4.125
"""Bytes per packed text token: its id and a bit of the loss mask."""
PACKED_IMAGE_BYTES = 48
"""Bytes per packed image: source's offset and name, row, media, timestamp, five sizes, position."""
PACKED_DOCUMENT_BYTES = 72
"""Bytes per packed document: source, sample id, row, part, occurrence, turns, start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity and its expected range: ``low ≤ value ≤ high``."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Estimate:
        """A quantity that was counted."""
        return cls(value=value, low=value, high=value)

    @classmethod
    def about(cls, value: float, relative: float) -> Estimate:
        """A quantity known within a share of itself: 0.2 for ±20 %."""
        return cls(value=value, low=value * (1 - min(relative, 1.0)), high=value * (1 + relative))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(value=self.value + other.value, low=self.low + other.low, high=self.high + other.high)

    def times(self, factor: float) -> Estimate:
        """Multiplied by a known factor, 0 or more."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


NOTHING = Estimate.exactly(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Tokens that a sequence of packed pictures holds at most."""

    text: int
    image: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Rate of one core at a task, and the source of that number."""

    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Work of one core per second.

    Attributes:
        clean_megapixels: Megapixels of still pictures in the clean stage: decoded once, hashed, written.
        video_megapixels: Megapixels of used frames there; the frames between them are decoded too.
        encode_tokens: Text tokens that the pack stage makes from samples.
        pack_samples: Samples that the packer assigns to sequences; it runs on one core of the driver.
    """

    clean_megapixels: Rate
    video_megapixels: Rate
    encode_tokens: Rate
    pack_samples: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines that prepare the data.

    Attributes:
        nodes: Number of machines.
        cpus_per_node: Working cores per machine.
        network_gbps: Line rate of each machine to the store, gigabits per second each way.
        rates: Rates of one core.
        store_gbps: Rate of the store to all machines together, where that is known.
    """

    nodes: int
    cpus_per_node: int
    network_gbps: float
    rates: Rates
    store_gbps: float | None = None

    @property
    def cores(self) -> int:
        """Working cores of all machines."""
        return self.nodes * self.cpus_per_node

    @property
    def bytes_per_second(self) -> float:
        """Expected bytes per second to or from the store, over all machines."""
        links = self.nodes * self.network_gbps
        return min(links, self.store_gbps or links) * GIGABIT * NETWORK_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceForecast:
    """Forecast of one source.

    Attributes:
        rows: Records, each once.
        samples: Packed samples, ``passes`` counted.
        images: Pictures or used frames, each once.
        megapixels: Their pixels.
        text_tokens, image_tokens: Packed tokens, ``passes`` counted.
        read_bytes, clean_bytes, pack_bytes: Size of its raw files, its clean artifact, its part of the pack.
    """

    name: str
    video: bool
    rows: int
    samples: int
    images: Estimate
    megapixels: Estimate
    text_tokens: Estimate
    image_tokens: Estimate
    read_bytes: Estimate
    clean_bytes: Estimate
    pack_bytes: Estimate
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Duration of a stage: the larger of what its cores and its network need.

    Attributes:
        seconds: Duration of the whole stage, s.
        compute, network: Duration that each alone would need, s.
        serial: The part of ``compute`` that one core does for all, s.
    """

    seconds: Estimate
    compute: Estimate
    network: Estimate
    serial: Estimate = NOTHING

    @property
    def bound_by(self) -> str:
        """``cores`` or ``network``."""
        return "cores" if self.compute.value >= self.network.value else "network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of a mixture.

    Attributes:
        sequences: Sequences of packed pictures and of videos.
        lower_bound: Smallest number of sequences that any packing of these tokens needs.
        fill: ``text`` and ``image`` → used share of the budget in sequences of packed pictures.
        clean, pack: Durations of the stages.
    """

    name: str
    sources: tuple[SourceForecast, ...]
    sequences: Estimate
    video_sequences: int
    lower_bound: Estimate
    fill: dict[str, float]
    clean: StageTime
    pack: StageTime

    def total(self, measure: str) -> Estimate:
        """The sum over the sources of one of their estimates, by its name."""
        return _sum(getattr(source, measure) for source in self.sources)


def forecast(listing: Listing, budgets: Budgets, images: ImageSettings, cluster: Cluster) -> Forecast:
    """Forecast the preparation of ``listing``.

    Args:
        listing: Corpora with counts and mean sizes.
        budgets: Budgets of a sequence of packed pictures.
        images: How picture sizes become tokens; exact for a given size.
        cluster: The machines.
    """
    sources = tuple(_source(source, images) for source in listing.sources)
    still = [source for source in sources if not source.video]
    text = _sum(source.text_tokens for source in still)
    image = _sum(source.image_tokens for source in still)
    videos = sum(source.samples for source in sources if source.video)
    bound = _bound(text, image, budgets)
    packed = bound.times(1 + PACKING_OVERHEAD)
    room = max(packed.value, 1.0)
    return Forecast(
        name=listing.name,
        sources=sources,
        sequences=packed + Estimate.exactly(videos),
        video_sequences=videos,
        lower_bound=bound + Estimate.exactly(videos),
        fill={"text": text.value / (room * budgets.text), "image": image.value / (room * budgets.image)},
        clean=_clean_time(sources, cluster),
        pack=_pack_time(sources, cluster),
    )


def mean_tokens(sizes: Sequence[PictureSize], images: ImageSettings, *, frame: bool) -> float:
    """Mean image tokens of a picture, exact for each size."""
    return sum(size.share * images.size(size.height, size.width, frame=frame).tokens for size in sizes)


def _source(listing: SourceListing, images: ImageSettings) -> SourceForecast:
    def mean(per_row: float, times: float) -> Estimate:
        return Estimate.about(per_row * times, listing.uncertainty)

    rows, samples = listing.rows, round(listing.rows * listing.passes)
    pictures = mean(listing.images_per_row, rows)
    pixels = sum(size.share * size.width * size.height for size in listing.sizes) / 1e6
    tokens = mean_tokens(listing.sizes, images, frame=listing.video)
    text_tokens = mean(listing.text_tokens_per_row, samples)
    packed_images = mean(listing.images_per_row, samples)
    return SourceForecast(
        name=listing.name,
        video=listing.video,
        rows=rows,
        samples=samples,
        images=pictures,
        megapixels=pictures.times(pixels),
        text_tokens=text_tokens,
        image_tokens=packed_images.times(tokens),
        read_bytes=Estimate.about(listing.bytes, listing.bytes_uncertainty),
        clean_bytes=mean(listing.media_bytes_per_row + listing.text_bytes_per_row, rows)
        + Estimate.exactly(rows * CLEAN_ROW_BYTES),
        pack_bytes=text_tokens.times(TEXT_TOKEN_BYTES)
        + packed_images.times(PACKED_IMAGE_BYTES)
        + Estimate.exactly(samples * PACKED_DOCUMENT_BYTES),
        basis=listing.basis,
    )


def _bound(text: Estimate, image: Estimate, budgets: Budgets) -> Estimate:
    def least(text_tokens: float, image_tokens: float) -> int:
        return max(ceil(text_tokens / budgets.text), ceil(image_tokens / budgets.image))

    return Estimate(
        value=least(text.value, image.value),
        low=least(text.low, image.low),
        high=least(text.high, image.high),
    )


def _clean_time(sources: Sequence[SourceForecast], cluster: Cluster) -> StageTime:
    still = _sum(source.megapixels for source in sources if not source.video)
    moving = _sum(source.megapixels for source in sources if source.video)
    compute = still.times(1 / (cluster.cores * cluster.rates.clean_megapixels.value)) + moving.times(
        1 / (cluster.cores * cluster.rates.video_megapixels.value)
    )
    read, written = (_sum(getattr(s, name) for s in sources) for name in ("read_bytes", "clean_bytes"))
    return _time(compute, _larger(read, written).times(1 / cluster.bytes_per_second))


def _pack_time(sources: Sequence[SourceForecast], cluster: Cluster) -> StageTime:
    """Each row is encoded once, however often it is packed; the packer handles every occurrence."""
    once = _sum(s.text_tokens.times(s.rows / max(s.samples, 1)) for s in sources)
    encoded = once.times(1 / (cluster.cores * cluster.rates.encode_tokens.value))
    placed = Estimate.exactly(
        sum(s.samples for s in sources if not s.video) / cluster.rates.pack_samples.value
    )
    # Encoded rows are written and read once more on the way; the clean artifact's media are not read.
    moved = _sum(s.pack_bytes for s in sources).times(2)
    return _time(encoded + placed, moved.times(1 / cluster.bytes_per_second), placed)


def _time(compute: Estimate, network: Estimate, serial: Estimate = NOTHING) -> StageTime:
    return StageTime(seconds=_larger(compute, network), compute=compute, network=network, serial=serial)


def _larger(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(
        value=max(one.value, other.value), low=max(one.low, other.low), high=max(one.high, other.high)
    )


def _sum(estimates: Iterable[Estimate]) -> Estimate:
    total = NOTHING
    for estimate in estimates:
        total = total + estimate
    return total
