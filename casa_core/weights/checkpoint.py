"""Checkpoint folders in Hugging Face layout: what training writes, and evaluation and serving load.

After ``import casa_core.auto`` transformers' auto classes load such a folder too.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import GenerationConfig

from casa_core.atomic import replacing
from casa_core.config import CasaConfig
from casa_core.errors import CasaError, StoreError, cause
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: str | Path,
    model: CasaForConditionalGeneration,
    processor: CasaProcessor,
    *,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write ``config.json``, ``generation_config.json``, ``model.safetensors``, tokenizer, processor, and
    last our ``manifest.json``.

    Weights keep their dtype; ``provenance`` is where they come from: recipe, step, data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    generation_defaults(model, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    manifest = {
        "format": "casa-checkpoint/1",
        "parameters": sum(p.numel() for p in model.parameters()),
        "template_hash": processor.template_hash(),
        "provenance": provenance or {},
    }
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2, sort_keys=True))


def generation_defaults(model: CasaForConditionalGeneration, processor: CasaProcessor) -> GenerationConfig:
    """The model's settings for ``generate()``: it ends at the template's end of a turn too, and pads as the
    tokenizer does."""
    config = copy.deepcopy(model.generation_config)
    stops = config.eos_token_id if config.eos_token_id is not None else []
    ids = sorted({processor.end_id, *(stops if isinstance(stops, list) else [stops])})
    config.eos_token_id = ids[0] if len(ids) == 1 else ids
    pad = processor.tokenizer.pad_token_id
    config.pad_token_id = config.pad_token_id if pad is None else pad
    return config


def load_checkpoint(folder: str | Path) -> tuple[CasaForConditionalGeneration, CasaProcessor]:
    """Load a folder that :func:`save_checkpoint` finished, or whose ``model/`` it did: a train stage's.

    Raises:
        StoreError: If it is missing, was not finished, its weights are not those its configuration calls for,
            or its template is not the one this code writes.
    """
    folder = Path(folder)
    if (folder / "model" / MANIFEST).is_file():
        folder /= "model"
    if not (folder / MANIFEST).is_file():
        raise StoreError(
            f"{folder} is not a finished checkpoint.",
            f"It has no {MANIFEST}, which is written last.",
            "Point at the model/ folder of a finished train stage.",
        )
    with _reading(folder, "config.json"):
        config = CasaConfig.from_pretrained(folder)
    with _reading(folder, "the weights (*.safetensors, generation_config.json)"):
        model, report = cast(
            tuple[CasaForConditionalGeneration, dict[str, Any]],
            CasaForConditionalGeneration.from_pretrained(folder, config=config, output_loading_info=True),
        )
    _check_complete(folder, report)
    with _reading(folder, "the processor (processor_config.json, tokenizer.json, tokenizer_config.json)"):
        (folder / "processor_config.json").stat()  # without it transformers takes every default
        processor = cast(CasaProcessor, CasaProcessor.from_pretrained(folder))
    with _reading(folder, MANIFEST):
        stored = json.loads((folder / MANIFEST).read_text())["template_hash"]
    if stored != processor.template_hash():
        raise StoreError(
            f"The chat template {processor.template!r} of {folder} has changed since it was trained.",
            "Its token sequences differ from those recorded in the manifest.",
            "Load it with the version of this package that trained it.",
        )
    return model.eval(), processor


@contextlib.contextmanager
def _reading(folder: Path, files: str) -> Iterator[None]:
    """What transformers raises for a damaged file, as a sentence that names it.

    A disk's own errors (permission, input/output) stay what they are.
    """
    try:
        yield
    except CasaError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        raise StoreError(
            f"The checkpoint {folder} cannot be loaded: {files} cannot be read.",
            f"{cause(error).splitlines()[0].rstrip('.')}.",
            "Copy it again from where it was made; `casa verify` names what differs from a run's artifact.",
        ) from error


def _check_complete(folder: Path, report: dict[str, Any]) -> None:
    """transformers only warns, and starts the weights it misses at random."""
    for kind, why in (
        ("missing_keys", "Its configuration calls for weights that are not in it."),
        ("unexpected_keys", "It has weights that its configuration does not use."),
    ):
        names = sorted(report[kind])
        if names:
            raise StoreError(
                f"The weights of {folder} do not fit its configuration: {len(names)}, first {names[0]}.",
                why,
                "Restore config.json and the weights from one and the same save.",
            )
