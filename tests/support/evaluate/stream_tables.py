"""Rows of the benchmarks about videos as they are watched, in their documented layouts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.evaluate.benchmarks.streams.ovobench_rows import unroll


def _texts(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string()) for name in names]


STREAM_SCHEMAS = {
    "livesports": pa.schema(
        _texts("video_id", "event_id", "begin", "end", "video", "class", "event_title", "preasr_text")
        + _texts("event_asr_text")
    ),
    "streamingbench": pa.schema(
        _texts("question_id", "task_type", "question", "time_stamp", "answer", "options")
    ),
    "ovobench": pa.schema(
        [
            *_texts("id", "task", "video"),
            pa.field("realtime", pa.float64()),
            *_texts("answer", "prompt"),
            pa.field("options", pa.list_(pa.string())),
        ]
    ),
}
OVOBENCH = [
    {
        "id": 1,
        "task": "EPM",
        "video": "Ego4D/a.mp4",
        "question": "Where was the cup?",
        "options": ["on the table", "in the sink"],
        "realtime": 30,
        "gt": 1,
    },
    {
        "id": 2,
        "task": "REC",
        "video": "perception_test/b.mp4",
        "activity": "clap",
        "test_info": [{"realtime": 30, "count": count} for count in (0, 2)],
    },
    {
        "id": 3,
        "task": "SSR",
        "video": "COIN/c.mp4",
        "test_info": [{"realtime": 30, "step": "cut the bread", "type": type} for type in (0, 1)],
    },
    {
        "id": 4,
        "task": "CRR",
        "video": "cross/d.mp4",
        "question": "Who wins?",
        "answer": "the left one",
        "ask_time": 3,
        "test_info": [{"realtime": 30, "type": 1}],
    },
]
"""OVO-Bench's annotations; a forward task's are about several times."""
STREAM_ROWS: dict[str, list[dict[str, Any]]] = {
    "livesports": [
        {
            "video_id": "4hGQ",
            "event_id": str(event),
            "begin": "125.0",
            "end": "145.5",
            "video": "videos/4hGQ.mp4",
            "class": "football",
            "event_title": "Cup final",
            "preasr_text": before,
            "event_asr_text": said,
        }
        for event, (before, said) in enumerate((("a corner", "and it is in"), ("", "the keeper saves")))
    ],
    "streamingbench": [
        {
            "question_id": f"Real-Time Visual Understanding_sample_7_{number}",
            "task_type": "Object Perception",
            "question": "What is held up now?",
            "time_stamp": "00:00:30",
            "answer": right,
            "options": "['A. a cup', 'B. a ball', 'C. a flag', 'D. nothing']",
        }
        for number, right in enumerate("BAD", 1)
    ],
    "ovobench": unroll(OVOBENCH),
}
