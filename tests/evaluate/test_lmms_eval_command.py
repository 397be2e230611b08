"""The command of lmms-eval runs a checkpoint on a task, with all that the harness needs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.evaluate.lmms_eval_model import documents
from tests.support.evaluate.questions import Drawn, expected

SOURCE = Drawn(count=23)
NEEDED = ("lmms_eval", "accelerate", "datasets", "evaluate", "loguru", "openai", "sacrebleu", "tenacity")
TASK = """
task: drawn
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6, do_sample: false, until: []}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
import io
from PIL import Image
def visual(doc):
    return [Image.open(io.BytesIO(doc["image"]))]
"""


@pytest.mark.slow
def test_the_command_runs_a_task_of_a_local_table(tiny_checkpoint: Path, tmp_path: Path):
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs lmms-eval with its dependencies; there is no {', '.join(missing)}")
    if "casa" not in {point.name for point in entry_points(group="lmms_eval.models")}:
        pytest.skip("needs this package installed with its entry points: pip install -e .")
    rows = [{"image": data, "question": text, "answer": "red"} for data, text in documents(SOURCE)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "drawn.parquet")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "drawn.yaml").write_text(TASK.format(data=tmp_path / "drawn.parquet"))
    (tasks / "utils.py").write_text(UTILS)
    command = [sys.executable, "-m", "lmms_eval", "--model", "casa", "--tasks", "drawn", "--log_samples"]
    command += ["--model_args", f"pretrained={tiny_checkpoint}", "--include_path", str(tasks)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [samples] = (tmp_path / "out").rglob("*_samples_drawn.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"] for row in found] == list(expected(tiny_checkpoint, SOURCE, 6).values())
