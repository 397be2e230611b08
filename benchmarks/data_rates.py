"""What one core does of data preparation in a second: the rates that ``casa data plan`` counts on.

    OMP_NUM_THREADS=1 python -m benchmarks.data_rates

Each part of the work runs alone, on one thread, in rounds that take turns; the median of its processor time
counts, which other programs do not stretch. Writes ``pipelines/cost/data_rates.json``, which plans read.

* ``clean_megapixels``: ``clean_record`` over JPEG pictures in memory and their rows into an Arrow shard.
* ``video_megapixels``: the same over H.264 clips at 25 frames a second, of which 2 a second are used; counted
  are the used frames' pixels.
* ``encode_tokens``: ``encode_sample`` over conversations of English prose, with a byte-level BPE.
* ``pack_samples``: the packer over sizes drawn from a wide distribution, under the paper's budgets.
"""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image as PILImage

from benchmarks.measure import RESULTS, interleaved, machine, stamp, table, write_result
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Sample, Text
from pipelines.cost.workload import RATES
from pipelines.data.clean.records import clean_record
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode import encode_sample
from pipelines.data.pack.packing import Packer
from pipelines.data.read import RawMedia, Record
from pipelines.data.store.rows import CLEAN_SCHEMA, CleanSample
from pipelines.data.store.shard_writing import write_shard

SIZES = ((448, 336), (640, 480), (800, 600), (1024, 768), (1700, 2200))
"""(width, height) of the pictures, a few of each."""
EACH = 6
FRAME, FPS, USED_FPS, SECONDS = (1280, 720), 25, 2, 8
PAPER = Budget(2048, 20_480)
CHUNK = 65_536
ROUNDS = 5


def main() -> None:
    """Measures, prints and writes."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        shard = Path(scratch) / "shard.arrow"
        pictures = [picture_record(size, rng) for size in SIZES for _ in range(EACH)]
        clips = [clip_record(rng) for _ in range(2)]
        encode, tokens = encoding(Path(__file__).resolve().parents[1])
        pack, samples = packing(rng)
        pixels = {
            "clean_megapixels": sum(w * h for w, h in SIZES) * EACH / 1e6,
            "video_megapixels": len(clips) * FRAME[0] * FRAME[1] * SECONDS * USED_FPS / 1e6,
        }
        work: dict[str, tuple[Callable[[], object], float]] = {
            "clean_megapixels": (lambda: clean(pictures, shard), pixels["clean_megapixels"]),
            "video_megapixels": (lambda: clean(clips, shard), pixels["video_megapixels"]),
            "encode_tokens": (encode, tokens),
            "pack_samples": (pack, samples),
        }
        taken = interleaved({name: command for name, (command, _) in work.items()}, ROUNDS)
    rates = {name: amount / statistics.median(taken[name].cpu) for name, (_, amount) in work.items()}
    spread = {
        name: (max(taken[name].cpu) - min(taken[name].cpu)) / statistics.median(taken[name].cpu)
        for name in work
    }
    about = stamp("python -m benchmarks.data_rates", {"rounds": ROUNDS})
    about["machine"] = machine().partition(" (load")[0]
    rounded = {name: float(f"{rate:.3g}") for name, rate in rates.items()}
    rows = [[name, f"{rate:,.0f}", f"{spread[name]:.0%}"] for name, rate in rounded.items()]
    text = f"# Rates of one core\n\n{about['machine']}, {about['date']}\n\n" + table(
        ["a second", "median", "spread"], rows
    )
    print(text)
    write_result("data_rates", about | {"rates": rounded, "spread": spread}, text)
    (RESULTS / RATES.name).replace(RATES)


def clean(records: list[Record], shard: Path) -> None:
    """Verifies records and writes their rows."""
    rows = []
    for record in records:
        verified = clean_record(record)
        assert isinstance(verified, CleanSample)
        rows.append(verified.to_row())
    write_shard(shard, CLEAN_SCHEMA, rows)


def picture_record(size: tuple[int, int], rng: np.random.Generator) -> Record:
    """A conversation about one JPEG of 1/f noise, which has the statistics of a photo."""
    buffer = io.BytesIO()
    PILImage.fromarray(noise(size, rng)).save(buffer, "JPEG", quality=88)
    media = RawMedia(kind="image", data=buffer.getvalue(), name="noise.jpg")
    return conversation(media, [Image(media=0)])


def conversation(
    media: RawMedia, images: Sequence[Image], question: str = "what?", answer: str = "noise"
) -> Record:
    """A record with one question about some images of a medium."""
    parts = (*images, Text(role="user", text=question), Text(role="assistant", text=answer, trained=True))
    return Record(file="f", row=0, sample=Sample(source="s", sample_id="0", parts=parts), media=(media,))


def noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A uint8 array (height, width, 3) of 1/f noise."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(3):
        spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        plane = np.fft.irfft2(spectrum / frequency**1.2, s=(height, width))
        planes.append(np.clip(128 + 48 * (plane - plane.mean()) / plane.std(), 0, 255))
    return np.stack(planes, axis=-1).astype(np.uint8)


def clip_record(rng: np.random.Generator) -> Record:
    """A question about a clip whose picture drifts, with the frames that are used."""
    still = noise((FRAME[0] + SECONDS * FPS, FRAME[1]), rng)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = *FRAME, "yuv420p"
        for number in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(still[:, number : number + FRAME[0]]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    media = RawMedia(kind="video", data=buffer.getvalue(), name="noise.mp4")
    frames = [Image(media=0, timestamp=n / USED_FPS) for n in range(SECONDS * USED_FPS)]
    return conversation(media, frames)


def encoding(root: Path) -> tuple[Callable[[], object], int]:
    """Encoding conversations of this project's own prose, and how many tokens they have."""
    prose = [path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md"))]
    paragraphs = [paragraph for text in prose for paragraph in text.split("\n\n") if len(paragraph) > 80]
    processor = CasaProcessor(build_tokenizer(paragraphs, 8192), max_side=896, patch_size=14, merge_size=2)
    samples = []
    for number, (asked, told) in enumerate(zip(paragraphs[::2], paragraphs[1::2], strict=False)):
        (media,) = picture_record((64, 48), np.random.default_rng(number)).media
        verified = clean_record(conversation(media, [Image(media=0)], asked, told))
        assert isinstance(verified, CleanSample)
        samples.append(verified)
    limits = Limits(pictures=PAPER, video=PAPER, split=True)

    def encode() -> int:
        tokens = 0
        for number, sample in enumerate(samples):
            result = encode_sample(processor, number, sample, limits)
            assert isinstance(result, list)
            tokens += sum(len(piece["input_ids"]) for piece in result)
        return tokens

    return encode, encode()


def packing(rng: np.random.Generator, samples: int = 200_000) -> tuple[Callable[[], object], int]:
    """Packing log-normal sizes: text of 30 to 2,048 tokens, images of 64 to 1,024, 5 % with four."""
    text = np.clip(rng.lognormal(4.8, 0.9, samples), 30, PAPER.text).astype(np.int64)
    images = np.where(rng.random(samples) < 0.05, 4, 1)
    image = np.clip(rng.lognormal(6.0, 0.7, samples), 64, 1024).astype(np.int64) * images

    def pack() -> int:
        packer = Packer(PAPER)
        closed = 0
        for start in range(0, samples, CHUNK):
            chunk = slice(start, start + CHUNK)
            closed += sum(1 for _ in packer.feed(text[chunk], image[chunk]))
        return closed + sum(1 for _ in packer.finish())

    return pack, samples


if __name__ == "__main__":
    main()
