"""Activation memory: bytes that autograd keeps between forward and backward, fitted to counted ones.

For a given family, fusion and precision they are linear in products of tokens, layers and widths. Small
models of the same layers run forward on the CPU, the bytes they keep are counted, and least squares gives the
coefficients, which hold at any size. So the estimate follows the code. The coefficients are remembered: the
models are imported and run where a family, fusion or setting is new.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from casa_core.batch import collate
from casa_core.config import CasaConfig, TinyVisionConfig, TrainingStage
from pipelines.cost.remembered import remembered
from pipelines.cost.synthetic import SequenceShape, blank_sequence

if TYPE_CHECKING:
    from casa_core.model import CasaForConditionalGeneration

PROBES = 90
TOLERANCE = 0.02
"""Largest relative error of the fit on a probe's bytes."""


class ActivationModel:
    """Activation memory of one family, fusion, set of trained parameters and precision, at any size.

    Args:
        config: The full model's; the probes replace its sizes with their own.
        stage: What trains; frozen parts keep less.
        precision: ``fp32`` or ``bf16``.
        checkpointing: With gradient checkpointing.

    Attributes:
        error: Largest relative error on a probe.
    """

    def __init__(self, config: CasaConfig, stage: TrainingStage, precision: str, checkpointing: bool) -> None:
        self._config, self._stage = config, stage
        self._precision, self._checkpointing = precision, checkpointing
        settings = [config.to_json_string(), repr(stage), precision, str(checkpointing)]
        *coefficients, self.error = remembered("activations", settings, self._fit)
        self._coefficients = np.array(coefficients)

    def _fit(self) -> list[float]:
        """The coefficients, and the largest relative error on a probe."""
        rng = np.random.default_rng(0)
        rows, kept = [], []
        with _one_thread():
            for _ in range(PROBES):
                small, shape = _probe(self._config, self._stage, rng)
                rows.append(features(small, self._stage, shape))
                kept.append(count_kept(small, self._stage, shape, self._precision, self._checkpointing))
        table, bytes_kept = np.array(rows), np.array(kept, dtype=np.float64)
        # Probes of every size have equal weight.
        coefficients = np.linalg.lstsq(table / bytes_kept[:, None], np.ones(PROBES), rcond=None)[0]
        return [*map(float, coefficients), float(np.abs(table @ coefficients / bytes_kept - 1).max())]

    def __call__(self, config: CasaConfig, shape: SequenceShape) -> int:
        """Bytes kept by a forward over one packed sequence of ``shape``."""
        return max(0, int(features(config, self._stage, shape) @ self._coefficients))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For products this small, threads wait for each other: with two, 90 probes take 44 s instead of 5."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def features(config: CasaConfig, stage: TrainingStage, shape: SequenceShape) -> NDArray[np.float64]:
    """The products of sizes in which activation memory is linear, 1-D."""
    text, tower, fusion = config.text_config, config.vision_config, config.fusion_settings
    width, ffn, heads = text.hidden_size, text.intermediate_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    keys = text.num_key_value_heads * head
    tower_head = tower.hidden_size // tower.num_heads
    layers = text.num_hidden_layers
    fused = len(fusion.layer_indices(layers)) if not fusion.inserts else 0
    tokens, images = float(shape.text_tokens), float(shape.image_tokens)
    inserted = images if fusion.kind == "insertion" else shape.images * fusion.qformer_queries
    if fusion.inserts:
        tokens += inserted
    blocks = tower.depth if stage.vision_blocks == "all" else stage.vision_blocks
    patches = 4 * images
    block_widths = (tower.hidden_size, tower.intermediate_size, tower.num_heads, tower_head, 1)
    return np.array(
        [
            *(tokens * (layers - fused) * size for size in (width, ffn, keys, heads, head, 1)),
            *(tokens * fused * size for size in (width, ffn, keys, heads, head, 1)),
            *(images * fused * size for size in (width, ffn, keys, heads, head, 1)),
            *(tokens * size for size in (width, head, 1)),
            *(images * size for size in (width, head, 1)),
            *(shape.trained_tokens * size for size in (width, text.vocab_size, 1)),
            *(patches * blocks * size for size in block_widths),
            *(patches * size for size in block_widths),
            *(patches * tower.depth * size for size in (tower.hidden_size, 1)),
            patches * (blocks > 0) * shape.patch_values,
            *(float(inserted * size * (fusion.kind == "qformer")) for size in (width, heads, 1)),
            1.0,
        ]
    )


def count_kept(
    config: CasaConfig, stage: TrainingStage, shape: SequenceShape, precision: str, checkpointing: bool
) -> int:
    """Run one forward of a new model, and count the bytes that it keeps (:func:`kept_by_forward`).

    Sizes decide that, and not values: weights are what the memory held, tokens and patches are blank.
    """
    # late: to import the model takes as long as half of the rest of a plan
    from transformers.initialization import no_init_weights

    from casa_core.model import CasaForConditionalGeneration
    from casa_core.param_groups import parameter_groups

    with no_init_weights():
        model = CasaForConditionalGeneration(config).train()
    parameter_groups(model, stage)
    if precision == "bf16":
        model = model.bfloat16()
    if checkpointing:
        model.recompute_activations()
    return kept_by_forward(model, collate([blank_sequence(shape)]).inputs())


def kept_by_forward(model: CasaForConditionalGeneration, inputs: dict[str, Any]) -> int:
    """Bytes of the storages that autograd keeps after a forward, each counted once.

    Weights do not count, nor do masks: attention in windows needs them on a CPU, and not in a GPU's kernels.
    """
    packed: list[weakref.ref[_Kept]] = []

    def pack(tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor.detach(), tensor.requires_grad)
        packed.append(weakref.ref(kept))
        return kept

    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    with saved_tensors_hooks(pack, lambda kept: kept.tensor), _MaskShapes() as masks:
        loss = model(**inputs).loss
    assert loss is not None  # it keeps its graph, and so the tensors that are counted
    alive = [kept for reference in packed if (kept := reference()) is not None]
    storages = {
        storage.data_ptr(): storage.nbytes()
        for kept in alive
        if kept.requires_grad or tuple(kept.tensor.shape) not in masks.seen
        for storage in (kept.tensor.untyped_storage(),)
    }
    return sum(size for pointer, size in storages.items() if pointer not in own)


@dataclass(eq=False)
class _Kept:
    """What autograd keeps in place of a tensor, for as long as its graph exists.

    Attributes:
        tensor: Detached: with its graph it would keep itself alive.
        requires_grad: Whether the original tensor required a gradient.
    """

    tensor: torch.Tensor
    requires_grad: bool


class _MaskShapes(TorchFunctionMode):
    """Records the shapes of attention masks, of which attention keeps copies in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = (kwargs or {}).get("attn_mask")
        if func is scaled_dot_product_attention and mask is not None:
            self.seen.add(tuple(mask.shape))
        return func(*args, **(kwargs or {}))


def _probe(
    config: CasaConfig, stage: TrainingStage, rng: np.random.Generator
) -> tuple[CasaConfig, SequenceShape]:
    """A small model with the same layers, and the shape of a sequence for it."""
    text, tower = copy.deepcopy(config.text_config), copy.deepcopy(config.vision_config)
    head = int(rng.choice([16, 32]))
    heads = int(rng.choice([2, 4]))
    text.hidden_size, text.num_attention_heads, text.head_dim = head * heads, heads, head
    text.num_key_value_heads = int(rng.choice([1, 2]))
    text.intermediate_size = int(rng.integers(16, 200))
    text.num_hidden_layers = int(rng.choice([4, 8]))
    text.vocab_size = int(rng.integers(32, 300))
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1] * text.num_hidden_layers
    if "mrope_section" in text.rope_parameters:
        text.rope_parameters["mrope_section"] = [head // 8, head // 8 + head // 16, head // 8 + head // 16]
    tower_heads = int(rng.choice([1, 2]))
    tower.num_heads, tower.hidden_size = tower_heads, tower_heads * int(rng.choice([16, 32]))
    tower.intermediate_size = int(rng.integers(16, 120))
    least = 1 if stage.vision_blocks == "all" else stage.vision_blocks
    tower.depth = int(least + rng.integers(0, 3))
    if isinstance(tower, TinyVisionConfig):
        patch_values = 3 * tower.patch_size**2
    else:
        tower.fullatt_block_indexes = [n for n in range(tower.depth) if n % 4 == 3]
        tower.out_hidden_size = text.hidden_size
        patch_values = 3 * 2 * 14 * 14
    small = CasaConfig(text_config=text, vision_config=tower, fusion=config.fusion)
    images = int(rng.integers(1, 4))
    shape = SequenceShape(
        # Documents of equal length, so that no padding is counted.
        text_tokens=images * int(rng.integers(8, 32)) * 2,
        images=images,
        side=int(rng.integers(1, 4)) * 4,
        patch_values=patch_values,
        documents=images,
    )
    return small, shape
