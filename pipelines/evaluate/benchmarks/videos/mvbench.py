"""MVBench: twenty tasks about short videos, 200 multiple-choice questions each; all tasks count the same."""

from __future__ import annotations

from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark, Question, VideoSource
from pipelines.evaluate.benchmarks.layout.build import asked, letter_of, lettered
from pipelines.evaluate.benchmarks.layout.columns import Kind, Record, columns
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.choice import ChoiceByCategory

FOLDERS = {
    "action_antonym": "ssv2_video_mp4", "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment", "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment", "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation", "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment", "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert", "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation", "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation", "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos", "scene_transition": "scene_qa/video",
    "state_change": "perception/videos", "unexpected_action": "FunQA_test/test",
}  # fmt: skip
"""Task → folder of its videos."""
AS_PICTURES = {"episodic_reasoning": 3.0}
"""Task whose videos are folders of pictures → pictures a second."""


def _read(record: Record, videos: VideoSource) -> Question:
    video, options = record.text("video"), record.texts("candidates")
    path, fps = f"{FOLDERS[record.config]}/{video}", AS_PICTURES.get(record.config)
    shown = videos.pictures(path, fps) if fps else videos.frames(path)
    listed = lettered(options, "({letter}) {text}")
    prompt = f"Question:{record.text('question')}\nOption:\n{listed}\nOnly give the best option.\n"
    right = letter_of(record, "answer", options)
    truth = Truth(answers=(right,), options=options, category=record.config, group=video)
    return asked(record, shown, prompt, truth)


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    repository="OpenGVLab/MVBench",
    configs=tuple(FOLDERS),
    split="train",
    columns=columns(video=Kind.TEXT, question=Kind.TEXT, candidates=Kind.TEXTS, answer=Kind.TEXT),
    metric=ChoiceByCategory(),
    read_video=_read,
    max_new_tokens=16,
    prompt_source="lmms-eval's mvbench",
    files=("json/{config}.json",),
)
