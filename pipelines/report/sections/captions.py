"""Section on live captions: a timeline of frames with the words that were due and those generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casa_core.media.decode import decode_pictures
from pipelines.data.store.readers import CleanReader
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.metrics.captions import Event, EventCounts, event_score, paired_events, word_events
from pipelines.html.layout import section
from pipelines.html.pictures import picture
from pipelines.html.tags import Html, tag
from pipelines.report.sections.run_artifacts import Run, Stage

SIDE = 96


def captions(run: Run) -> Html:
    """Timelines of live captions; one sentence for a run without live clips."""
    stage = run.get("evaluate")
    sources = ((stage.json("captions.json") if stage else None) or {}).get("model", {})
    if stage is None or not sources:
        return section("Live captions", "This run captioned no clips.")
    tolerance = int(stage.settings["evaluate"]["frame_tolerance"])
    lead = (
        "Frames arrive one by one; the model sees none before its time. Words were due at the frame they "
        f"stand under. A word counts when it is said within {tolerance} frame of its due."
    )
    keys = tag(
        "p",
        tag("span", "said in time", class_="word hit"),
        tag("span", "due, but not said", class_="word missed"),
        tag("span", "said, but not due", class_="word extra"),
        class_="legend",
    )
    strips = []
    for source, clips in sources.items():
        for name, clip in _examples(clips, tolerance, run.timelines):
            strips.append(_strip(run.get(f"clean-{source}"), source, name, clip, tolerance))
    return section("Live captions", lead, keys, *strips)


def _examples(
    clips: Sequence[dict[str, Any]], tolerance: int, count: int
) -> list[tuple[str, dict[str, Any]]]:
    """Clips evenly spaced from the worst to the best by F1, each with a name."""
    ranked = sorted(clips, key=lambda clip: (_f1(clip, tolerance), clip["row"]))
    last = len(ranked) - 1
    ranks = sorted({round(index * last / max(count - 1, 1)) for index in range(count)})
    names = {0: "worst clip", last: "best clip"}
    return [(names.get(at, f"clip {at + 1} of {len(ranked)} from the worst"), ranked[at]) for at in ranks]


def _f1(clip: dict[str, Any], tolerance: int) -> float:
    spoken, truth = _texts(clip)
    return event_score([EventCounts.of_clip(spoken, truth, tolerance)], resamples=1).f1.value


def _texts(clip: dict[str, Any]) -> tuple[list[str], list[str]]:
    return [frame["spoken"] for frame in clip["frames"]], [frame["truth"] for frame in clip["frames"]]


def _strip(stage: Stage | None, source: str, name: str, clip: dict[str, Any], tolerance: int) -> Html:
    spoken, truth = (word_events(texts) for texts in _texts(clip))
    pairs = paired_events(spoken, truth, tolerance)
    generated = _marked(spoken, [pair[0] for pair in pairs], "extra")
    due = _marked(truth, [pair[1] for pair in pairs], "missed")
    thumbnails = _thumbnails(stage, clip)
    frames = [
        tag(
            "li",
            thumbnails[index] if thumbnails else tag("span"),
            tag("time", f"{frame['timestamp']:.1f} s"),
            tag("div", *due.get(index, []), class_="due"),
            tag("div", *generated.get(index, []), class_="said"),
        )
        for index, frame in enumerate(clip["frames"])
    ]
    labels = tag("li", tag("b", "due"), tag("b", "said"), class_="labels")
    title = tag(
        "p",
        tag("b", f"{name}: {clip['sample_id']}"),
        f" ({source}, row {clip['row']}), F1 {100 * _f1(clip, tolerance):.0f} %",
        class_="striptitle",
    )
    return tag("div", title, tag("ol", labels, *frames, class_="strip"), class_="clip")


def _marked(events: Sequence[Event], paired: Sequence[Event], otherwise: str) -> dict[int, list[Html]]:
    """Words by frame; those without a partner carry the class ``otherwise``."""
    left = list(paired)
    words: dict[int, list[Html]] = {}
    for event in events:
        style = otherwise
        if event in left:
            left.remove(event)
            style = "hit"
        words.setdefault(event[0], []).append(tag("span", event[1], class_=f"word {style}"))
    return words


def _thumbnails(stage: Stage | None, clip: dict[str, Any]) -> list[Html]:
    """The clip's frames; none without the clean artifact, or where a clip has several videos."""
    if stage is None:
        return []
    reader = CleanReader(stage.folder, HELD_OUT)
    if len(reader.without_bytes(clip["row"])["media"]) != 1:
        return []
    times = [frame["timestamp"] for frame in clip["frames"]]
    video = reader.media(clip["row"], 0)
    shown = zip(decode_pictures([(video, time) for time in times]), times, strict=True)
    return [picture(rgb, alt=f"frame at {time:.1f} s", side=SIDE, loading="lazy") for rgb, time in shown]
