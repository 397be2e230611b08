"""Weights in safetensors files → a model, tensor by tensor, without a second copy in memory.

Which tensor becomes which parameter is decided and checked, names and shapes, before the first value is read:
a model is made whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.initialization import no_init_weights
from transformers.utils.hub import cached_file

from casa_core.config import CasaConfig
from casa_core.errors import StoreError
from casa_core.model import CasaForConditionalGeneration

Shape = tuple[int, ...]
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def find_file(source: str | Path, name: str, revision: str | None = None) -> Path:
    """A file of a local folder, or of a repository on the hub, fetched if need be.

    Raises:
        StoreError: If it is not there, or the hub does not give it.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        if path.is_file():
            return path
        raise StoreError(
            f"{source} has no {name}.",
            "A folder in the layout of the Hugging Face hub is expected.",
            "Copy or download the folder again, whole.",
        )
    try:
        found = cached_file(str(source), name, revision=revision)
    except OSError as error:
        raise StoreError(
            f"{source} is no local folder, and the hub gives no {name} of that name.",
            str(error).split("\n")[0],
            "Check the spelling, the network and, for a gated model, the hub's token.",
        ) from error
    assert found is not None, "cached_file raises for what it does not find"
    return Path(found)


def _has_file(source: str | Path, name: str, revision: str | None) -> bool:
    try:
        find_file(source, name, revision)
    except StoreError:
        return False
    return True


class WeightFiles:
    """The tensors of some safetensors files by name; values are read one at a time.

    Args:
        label: What to call them in reports and errors.
        paths: The files.

    Attributes:
        shapes: Every tensor's shape.

    Raises:
        StoreError: If a file is missing or damaged, or two hold a tensor of the same name.
    """

    def __init__(self, label: str, paths: Sequence[Path]) -> None:
        self.label = label
        self.shapes: dict[str, Shape] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            for name, shape in _shapes(path).items():
                if name in self.shapes:
                    raise StoreError(
                        f"{label} holds two tensors named {name}.",
                        f"One is in {self._paths[name].name}, the other in {path.name}.",
                        "Leave one set of weights in the folder.",
                    )
                self.shapes[name] = shape
                self._paths[name] = path

    @classmethod
    def of(cls, source: str | Path, revision: str | None = None) -> WeightFiles:
        """The weights of a local folder, or of a repository on the hub: one file, or shards with an index.

        Raises:
            StoreError: If there are none, or a shard or a tensor that the index names is missing.
        """
        if not _has_file(source, INDEX, revision):
            return cls(str(source), [find_file(source, SINGLE, revision)])
        index = find_file(source, INDEX, revision)
        shard_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = [find_file(source, name, revision) for name in sorted(set(shard_of.values()))]
        files = cls(str(source), shards)
        absent = sorted(set(shard_of) - set(files.shapes))
        if absent:
            raise StoreError(
                f"{source} lacks {len(absent)} of {len(shard_of)} tensors, {absent[0]} among them.",
                f"{INDEX} places it in {shard_of[absent[0]]}, which does not hold it.",
                "Copy or download the folder again, whole.",
            )
        return files

    def read(self, name: str) -> torch.Tensor:
        """A tensor, still in its file until its values are used. No file stays open after it."""
        with safe_open(self._paths[name], framework="pt") as file:
            return file.get_tensor(name)


def _shapes(path: Path) -> dict[str, Shape]:
    """Every tensor's shape, from a file's head."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{path} cannot be read.",
            f"It is no whole safetensors file ({error}).",
            "Copy or download it again.",
        ) from error


@dataclass(frozen=True, slots=True)
class TensorCopy:
    """One parameter of a model, and the tensor that becomes it.

    Attributes:
        target: The parameter's name.
        source: The tensor's.
        files: The files that hold it.
        change: Applied to it first: another order of its rows.
    """

    target: str
    source: str
    files: WeightFiles = field(repr=False, compare=False)
    change: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> Shape:
        """The tensor's shape; no change alters it."""
        return self.files.shapes[self.source]

    def value(self) -> torch.Tensor:
        """The parameter's values."""
        tensor = self.files.read(self.source)
        return tensor if self.change is None else self.change(tensor)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Where a model's weights came from, and what was not used.

    Attributes:
        taken: Parameters with the tensors that became them.
        started: Parameters of new layers, which were initialised.
        left_over: Tensors that were not used.
        problems: Why the import is refused; empty for a model that was made.
    """

    taken: tuple[TensorCopy, ...]
    started: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{len(self.taken)} tensors taken, {len(self.started)} parameters started anew, "
            f"{len(self.left_over)} tensors left over"
        ]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def table(self) -> str:
        """Every tensor on a line of its own: ``source → target (shape)``, then the rest."""
        lines = [f"{copy.source} → {copy.target} {copy.shape}" for copy in self.taken]
        lines += [f"(new) → {name}" for name in self.started]
        lines += [f"{name} → (left over)" for name in self.left_over]
        return "\n".join(lines)


def parameter_shapes(config: CasaConfig) -> dict[str, Shape]:
    """Names and shapes of a model's parameters, without making them. A tied head counts as the embedding."""
    with torch.device("meta"):
        model = CasaForConditionalGeneration(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def shape_problems(copies: Iterable[TensorCopy], expected: Mapping[str, Shape]) -> list[str]:
    """Tensors that do not fit their parameter, in words."""
    return [
        f"{copy.source} has the shape {copy.shape}, {copy.target} needs {expected[copy.target]}"
        for copy in copies
        if copy.shape != expected[copy.target]
    ]


def build(
    config: CasaConfig, copies: Sequence[TensorCopy], dtype: torch.dtype
) -> CasaForConditionalGeneration:
    """A model with these weights, in evaluation mode. Parameters that nothing is taken for start as a fused
    model's do: from self-attention, or at random (torch's generator) for a Q-Former.
    """
    with no_init_weights(), _default_dtype(dtype):
        model = CasaForConditionalGeneration(config)
    model.tie_weights()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for copy in copies:
            parameters.pop(copy.target).copy_(copy.value())
    if any(name.startswith("qformer.") for name in parameters):
        assert model.qformer is not None
        model.qformer.apply(model._init_weights)
    if any(".fusion." in name for name in parameters):
        model.initialize_fusion()
    for part in (model.config, model.config.text_config, model.config.vision_config):
        part.dtype = dtype
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
