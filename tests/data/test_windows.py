"""Live streams over a budget: cut between frames into windows that each fit, every word and frame once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Part, Sample, Text
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.encode import encode_sample
from pipelines.data.pack.split import windows
from pipelines.data.pack.video_counts import VideoCounts
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.source.files import Files
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample, Media
from tests.support.data.corpus import live_record, write_jsonl
from tests.support.data.media import counting_video

QUERY = Text(role="user", text="what moves")


def frame(number: int) -> Image:
    return Image(role="assistant", timestamp=100 + number / 2)


def said(words: str) -> Text:
    return Text(role="assistant", text=words, trained=True)


def stream(texts: list[str], prompt: tuple[Part, ...] = (QUERY,)) -> Sample:
    spoken = itertools.chain.from_iterable((frame(n), said(text)) for n, text in enumerate(texts))
    return Sample(source="live", sample_id="live/1", parts=(*prompt, *spoken))


def words_of(sample: Sample) -> list[str]:
    spoken = [part.text for part in sample.parts if isinstance(part, Text) and part.role == "assistant"]
    return " ".join(spoken).split()


def frames_of(sample: Sample) -> list[float | None]:
    return [part.timestamp for part in sample.parts if isinstance(part, Image)]


def within(words: int, frames: int):
    return lambda sample: len(words_of(sample)) <= words and len(frames_of(sample)) <= frames


def fewest(sizes: list[int], words: int, frames: int) -> int | None:
    """Over all ways to cut: the least number of runs that each have few enough words and frames."""
    best: list[int | None] = [0]
    for end in range(1, len(sizes) + 1):
        before = [
            best[start]
            for start in range(max(0, end - frames), end)
            if best[start] is not None and sum(sizes[start:end]) <= words
        ]
        best.append(min((count + 1 for count in before if count is not None), default=None))
    return best[-1]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    words=st.integers(3, 12),
    most=st.integers(1, 9),
)
def test_windows_are_consecutive_and_lose_or_double_nothing_and_are_the_fewest(counts, words, most):
    names = iter(range(1000))
    sample = stream([" ".join(f"w{next(names)}" for _ in range(count)) for count in counts])
    found = windows(sample, within(words, most), most)
    expected = fewest(counts, words, most)
    assert (len(found) if found else None) == expected
    if found:
        assert all(within(words, most)(own) for own in found)
        assert [word for own in found for word in words_of(own)] == words_of(sample)
        assert [time for own in found for time in frames_of(own)] == frames_of(sample)
        assert all(own.parts[0] == QUERY and own.sample_id == "live/1" for own in found)
        pairs = [
            (image, text) for own in found for image, text in itertools.pairwise(own.parts) if image != QUERY
        ]
        assert {pair for pair in pairs if isinstance(pair[0], Image)} == {
            pair for pair in itertools.pairwise(sample.parts) if isinstance(pair[0], Image)
        }


def test_a_later_window_has_what_was_said_last_in_place_of_the_commentary_before_the_clip():
    prompt = Text(role="user", text="Title: Previous\nPrevious: one two three\nwhat moves")
    sample = stream(["four five", "", "six", "seven", "eightandnine", "ten"], prompt=(prompt,))
    found = windows(sample, within(100, 2), 2, previous="one two three")
    assert [own.parts[0].text.split("\n")[1] for own in found or ()] == [
        "Previous: one two three",
        "Previous: four five",  # at most as many characters, from a word's start on
        "Previous: six seven",
    ]
    assert all(own.parts[0].text.endswith("\nwhat moves") for own in found or ())
    assert [word for own in found or () for word in words_of(own)] == words_of(sample)


def test_a_silent_window_keeps_the_commentary_before_it():
    prompt = Text(role="user", text="Previous: one two\nwhat moves")
    found = windows(stream(["three"] + [""] * 5, prompt=(prompt,)), within(100, 2), 2, previous="one two")
    assert [own.parts[0].text.split("\n")[0][10:] for own in found or ()] == ["one two", "three", "three"]


@pytest.mark.parametrize(
    "sample",
    [
        stream(["a", "b", "c d e f"]),  # more words about one frame than a window holds
        Sample(source="s", sample_id="s", parts=(*stream(["a"] * 9).parts, QUERY)),  # a later question
        stream(["a"] * 9, prompt=(QUERY, said("an answer before the stream"))),
    ],
)
def test_a_stream_that_is_not_a_prompt_with_frames_and_words_that_fit_is_not_cut(sample):
    assert windows(sample, within(3, 4), 4) is None


# Through the real template.


@pytest.fixture(scope="module", params=["casa-1", "qwen-1"])
def processor(request) -> CasaProcessor:
    tokenizer = build_tokenizer(["red green blue what is it moves"] * 3, 340, request.param)
    return CasaProcessor(tokenizer, template=request.param, max_side=64)


def encoded(processor: CasaProcessor, sample: Sample, text: int, image: int, meta=None, split: bool = True):
    media = Media(kind="video", data=None, width=32, height=32, sha256="f00")
    clean = CleanSample(sample=sample, media=(media,), meta=meta or {})
    return encode_sample(
        processor, 3, clean, Limits(pictures=Budget(0, 0), video=Budget(text, image), split=split)
    )


def test_each_window_is_a_sample_with_its_own_frames_within_both_budgets(processor):
    sample = stream([["red", "", "green blue"][n % 3] for n in range(50)])
    (whole,) = encoded(processor, sample, 10_000, 10_000)
    for text, image in ((10_000, 4 * 7 + 3), (80, 10_000), (80, 4 * 7)):
        rows = encoded(processor, sample, text, image)
        assert not isinstance(rows, Rejected)
        assert [row["part"] for row in rows] == list(range(len(rows)))
        assert len(rows) > 1
        for row in rows:
            assert row["text_tokens"] == len(row["input_ids"]) <= text
            assert row["image_tokens"] == 4 * len(row["images"]) <= image
            assert row["frames"] == len(row["images"]) == len(row["image_positions"])
            assert row["video"]
        assert [image for row in rows for image in row["images"]] == whole["images"]
        trained = lambda row: [t for t, own in zip(row["input_ids"], row["loss_mask"], strict=True) if own]  # noqa: E731
        assert [token for row in rows for token in trained(row)] == trained(whole)
        counts = VideoCounts()
        counts.count(sample, rows)
        assert (counts.videos, counts.cut, counts.windows, counts.silent) == (1, 1, len(rows), 0)


def test_without_split_a_stream_over_a_budget_is_quarantined(processor):
    sample = stream(["red"] * 20)
    assert encoded(processor, sample, 10_000, 79, split=False).reason == "over_image_budget"
    assert encoded(processor, sample, 30, 80, split=False).reason == "over_text_budget"
    assert encoded(processor, stream(["red " * 60] * 4), 40, 80).reason == "over_text_budget"


def test_an_hour_of_stream_is_cut_in_seconds_of_work(processor, monkeypatch):
    calls = 0
    encode = processor.encode

    def counted(sample, sizes, **options):
        nonlocal calls
        calls += len(sample.parts)
        return encode(sample, sizes, **options)

    monkeypatch.setattr(processor, "encode", counted)
    frames = 3600
    rows = encoded(processor, stream([""] * frames), 10_000, 4 * 120)
    assert len(rows) == frames / 120
    assert calls < 2 * frames * 15  # parts: each frame is looked at about log2(120) times


def test_the_prompt_is_the_readers_own(processor, tmp_path):
    (tmp_path / "clips").mkdir()
    counting_video(tmp_path / "clips" / "a.mp4", frames=40, fps=10)
    words = [[n / 2, n / 2 + 0.2, f"w{n}"] for n in range(8)]
    record = live_record(
        video="clips/a.mp4", words=words, start=0.0, end=4.0, previous="said before", title="T"
    )
    write_jsonl(tmp_path / "train.jsonl", [record])
    reader = LiveWhisperXReader(
        files=Files(str(tmp_path)), source="live", context=("title", "previous"), fps=2.0
    )
    (read,) = [one for span in reader.spans("train") for one in reader.read(span)]
    found = windows(read.sample, within(100, 4), 4, previous=read.meta["previous"])
    assert found is not None
    assert "Previous: said before\n" in found[0].parts[0].text
    assert "Previous: w0 w1 w2 w3\n" in found[1].parts[0].text
    assert found[1].parts[0].text.startswith("Title: T\n")
