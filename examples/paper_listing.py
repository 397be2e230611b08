"""Writes the listings ``paper`` and ``livecc``: the paper's data, planned without having them.

    python examples/paper_listing.py
    casa data plan --listing paper --nodes 8 --cpus-per-node 64 --network-gbps 25

Each number says where it comes from. *Paper* is the CASA paper, appendix B.1 (arXiv 2512.19535, version 1);
*FineVision* and *Docmatix* are the announcements of those corpora. What none of them states is *assumed*, and
its uncertainty is set accordingly: the plan is as good as these assumptions.
"""

from __future__ import annotations

from pipelines.cost.listing import LISTINGS, Listing, PictureSize, RawFile, SourceListing, write_listing

OUTPUT, LIVE_OUTPUT = LISTINGS / "paper.json", LISTINGS / "livecc.json"
MILLION = 1_000_000

ALL_IMAGES = 24 * MILLION
"""Paper: FineVision and the LLaVA-OneVision-1.5 subset have 24 M images together."""
FINEVISION_IMAGES, FINEVISION_SAMPLES = 17 * MILLION, 24 * MILLION
FINEVISION_TURNS, FINEVISION_ANSWER_TOKENS = 90 * MILLION, 10_000 * MILLION
FINEVISION_BYTES = 5 * 10**12
"""FineVision: 17 M images, 24 M samples, 90 M question-answer turns, 10 B answer tokens, 5 TB."""
DOCMATIX_IMAGES, DOCMATIX_DOCUMENTS, DOCMATIX_TURNS = 2_400_000, 1_300_000, 9_500_000
"""Docmatix: 2.4 M images and 9.5 M question-answer pairs from 1.3 M documents, rendered at 150 dpi."""
DOCMATIX_PASSES = 6
"""Paper: Docmatix replaces FineVision's Docling-matix, and is over-sampled by 6."""
VIDEOS, VIDEO_TURNS = 178_000, 1_300_000
"""Paper: LLaVA-Video-178K has 1.3 M question-answer pairs over 178 K videos of up to 3 minutes."""

CLIPS = 526_000
"""Paper: Live-WhisperX-526K, by its name."""

QUESTION_TOKENS, TURN_TOKENS = 20, 6
"""Assumed: of a question, and of the template around a turn."""
SHORT_ANSWER_TOKENS = 15
"""Assumed: of an answer about a document page or a video."""
BYTES_PER_TOKEN = 4.2
"""Assumed: UTF-8 bytes of a text token."""
VIDEO_FRAMES, VIDEO_BYTES = 120, 8_000_000
"""Assumed: a video of 60 s on average, at the paper's 2 frames a second, and its file."""
SPOKEN_TOKENS_PER_SECOND = 3.5
"""Assumed: speech of 150 words per minute."""
PAGE_BYTES, PICTURE_BYTES = 250_000, 150_000
"""Assumed: a rendered page; a picture of LLaVA-OneVision-1.5."""
SHARD_BYTES = 500_000_000
"""Assumed: of a parquet file."""

PHOTOS_AND_CHARTS = (
    PictureSize(width=448, height=336, share=0.20),
    PictureSize(width=640, height=480, share=0.35),
    PictureSize(width=800, height=600, share=0.20),
    PictureSize(width=1024, height=768, share=0.15),
    PictureSize(width=1700, height=2200, share=0.10),
)
"""Assumed: web photos, charts and some scanned pages."""
PAGE = (PictureSize(width=1275, height=1650, share=1.0),)
"""Assumed: US letter at Docmatix's 150 dpi."""
FRAME = (PictureSize(width=1280, height=720, share=1.0),)
"""Assumed: frames of a video."""


def main() -> None:
    """Writes the listings beside this script."""
    write_listing(Listing(name="the paper's mixture, simulated", sources=tuple(sources())), OUTPUT)
    write_listing(Listing(name="LiveCC's clips, simulated", sources=(live_source(),)), LIVE_OUTPUT)
    print(f"wrote {OUTPUT.name} and {LIVE_OUTPUT.name}")


def sources() -> list[SourceListing]:
    """The four corpora of the image and video stages, named as the recipes' sources."""
    # Assumed: Docling-matix, which Docmatix replaces, is as large as Docmatix.
    rest_images = FINEVISION_IMAGES - DOCMATIX_IMAGES
    rest_samples = FINEVISION_SAMPLES - DOCMATIX_DOCUMENTS
    answers = FINEVISION_ANSWER_TOKENS / FINEVISION_SAMPLES
    turns = FINEVISION_TURNS / FINEVISION_SAMPLES
    picture_bytes = FINEVISION_BYTES / FINEVISION_IMAGES
    return [
        _source(
            "finevision",
            rows=rest_samples,
            images_per_row=rest_images / rest_samples,
            text_tokens=answers + turns * (QUESTION_TOKENS + TURN_TOKENS),
            image_bytes=picture_bytes,
            sizes=PHOTOS_AND_CHARTS,
            uncertainty=0.25,
            basis="counts, bytes and answer tokens: FineVision, less Docling-matix; picture sizes: assumed",
        ),
        _source(
            "docmatix",
            rows=DOCMATIX_DOCUMENTS,
            images_per_row=DOCMATIX_IMAGES / DOCMATIX_DOCUMENTS,
            text_tokens=DOCMATIX_TURNS
            / DOCMATIX_DOCUMENTS
            * (QUESTION_TOKENS + SHORT_ANSWER_TOKENS + TURN_TOKENS),
            image_bytes=PAGE_BYTES,
            sizes=PAGE,
            passes=DOCMATIX_PASSES,
            uncertainty=0.25,
            basis="counts and dpi: Docmatix; passes: paper; lengths, page size and bytes: assumed",
        ),
        _source(
            "llava_onevision",
            rows=ALL_IMAGES - FINEVISION_IMAGES,
            images_per_row=1.0,
            text_tokens=300,
            image_bytes=PICTURE_BYTES,
            sizes=PHOTOS_AND_CHARTS,
            uncertainty=0.5,
            basis="images: paper's 24 M less FineVision's; one image a record, everything else: assumed",
        ),
        _source(
            "llava_video",
            rows=VIDEOS,
            images_per_row=VIDEO_FRAMES,
            text_tokens=VIDEO_TURNS / VIDEOS * (QUESTION_TOKENS + SHORT_ANSWER_TOKENS + TURN_TOKENS),
            image_bytes=VIDEO_BYTES / VIDEO_FRAMES,
            sizes=FRAME,
            video=True,
            uncertainty=0.5,
            basis="videos and pairs: paper; all pairs of a video in one record, lengths and bytes: assumed",
        ),
    ]


def live_source() -> SourceListing:
    """The corpus of live captions."""
    return _source(
        "live_whisperx",
        rows=CLIPS,
        images_per_row=VIDEO_FRAMES,
        text_tokens=VIDEO_FRAMES / 2 * SPOKEN_TOKENS_PER_SECOND,
        image_bytes=VIDEO_BYTES / VIDEO_FRAMES,
        sizes=FRAME,
        video=True,
        uncertainty=0.5,
        basis="clips: the corpus's name; lengths, words and bytes: assumed",
    )


def _source(
    name: str,
    *,
    rows: int,
    images_per_row: float,
    text_tokens: float,
    image_bytes: float,
    sizes: tuple[PictureSize, ...],
    uncertainty: float,
    basis: str,
    passes: float = 1.0,
    video: bool = False,
) -> SourceListing:
    text_bytes = text_tokens * BYTES_PER_TOKEN
    media_bytes = images_per_row * image_bytes
    return SourceListing(
        name=name,
        files=_files(name, rows, round(rows * (media_bytes + text_bytes))),
        images_per_row=round(images_per_row, 4),
        text_tokens_per_row=round(text_tokens, 1),
        text_bytes_per_row=round(text_bytes, 1),
        media_bytes_per_row=round(media_bytes, 1),
        sizes=sizes,
        video=video,
        passes=passes,
        uncertainty=uncertainty,
        bytes_uncertainty=uncertainty,
        basis=basis,
    )


def _files(name: str, rows: int, size: int) -> tuple[RawFile, ...]:
    """All of a corpus as one entry that stands for its files."""
    count = max(1, round(size / SHARD_BYTES))
    return (RawFile(name=f"{name}: {count:,} files", rows=rows, bytes=size),)


if __name__ == "__main__":
    main()
