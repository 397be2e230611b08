"""Copies of a model in training that wait to be scored, and their scores.

Training writes a copy beside its checkpoints every ``train.score_every`` steps, and goes on. Another process
scores and removes it; the scores stand in ``scores.json`` of the artifact. As the same step gives the same
weights, a step that is taken again after a crash is neither written nor scored again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import save_checkpoint
from pipelines.storage.atomic import write_whole
from pipelines.storage.transfer import local_output, remove_tree
from pipelines.storage.uri import Folder
from pipelines.train.metrics import SCORES, read_scores
from pipelines.train.settings import SNAPSHOTS

WHOLE = ".whole"


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The copies of one run.

    Attributes:
        checkpoints: The run's folder of checkpoints.
        output: The train artifact.
    """

    checkpoints: Folder
    output: Folder

    def write(self, model: CasaForConditionalGeneration, processor: CasaProcessor, step: int) -> None:
        """Keep a copy of a step, unless there is one or it was scored."""
        if self._mark(step).is_file() or step in self.scores():
            return
        with local_output(self.folder(step)) as folder:
            save_checkpoint(folder, model, processor, provenance={"steps": step})
        write_whole(self._mark(step), "")

    def waiting(self) -> list[int]:
        """The steps whose copies are whole and not scored, in order."""
        folder = self.checkpoints / SNAPSHOTS
        found = [int(path.name.removesuffix(WHOLE)) for path in folder.glob(f"*{WHOLE}")]
        return sorted(set(found) - self.scores().keys())

    def scores(self) -> dict[int, dict[str, float]]:
        """Step → the scores of its copy: headlines as shares of 1, ``<source>_<measure>``; in order."""
        return read_scores(self.output)

    def scored(self, step: int, scores: dict[str, float]) -> None:
        """Note the scores of a copy, and remove it."""
        known = sorted((self.scores() | {step: scores}).items())
        lines = [{"step": at, "scores": own} for at, own in known]
        write_whole(self.output / SCORES, json.dumps(lines, indent=1) + "\n")
        self._mark(step).unlink(missing_ok=True)
        remove_tree(self.folder(step))

    def folder(self, step: int) -> Folder:
        """Where the copy of a step lies."""
        return self.checkpoints / SNAPSHOTS / f"step-{step:08d}"

    def _mark(self, step: int) -> Folder:
        return self.checkpoints / SNAPSHOTS / f"{step}{WHOLE}"
