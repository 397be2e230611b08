"""Description of one machine of a simulated cluster: GPUs, cores, links, store, price, failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from casa_core.errors import ConfigError
from casa_core.hardware import GPUS, Gpu, find_gpu
from pipelines.recipe.explain import explain
from pipelines.recipe.fields import Count, NonNegative, Positive, Section
from pipelines.recipe.load import parse_yaml
from pipelines.text_format import did_you_mean

DEFAULT_NODE = Path(__file__).with_name("h100.yaml")
_OF_THE_GPU = {
    "gpu_memory_gib": "memory_gib",
    "gpu_tflops": "bf16_tflops",
    "gpu_bandwidth_gbs": "bandwidth_gbs",
}


class Node(Section):
    """One machine. GB are 10^9 bytes, Gbit 10^9 bits."""

    name: str = Field(description="What to call it.")
    gpu: str = Field(description="Its GPUs: A100, A100-40, L40S, H100, H200, B200, or any other name.")
    gpus: Count = Field(description="GPUs, each with a training worker.")
    gpu_memory_gib: Positive = Field(description="Memory of a GPU, GiB.")
    gpu_tflops: Positive = Field(description="Dense bf16 rate of a GPU, 10^12 operations per second.")
    gpu_bandwidth_gbs: Positive = Field(description="Memory bandwidth of a GPU, GB/s.")
    mfu: Positive = Field(le=1, description="Share of that rate that training reaches.")
    gpu_link_gbs: Positive = Field(description="From a GPU to those of the same machine, GB/s each way.")
    nic_gbps: Positive = Field(description="From a machine to the others, Gbit/s each way.")
    cpus: Count = Field(description="CPU cores.")
    store_link_gbps: Positive = Field(description="From a machine to the store, Gbit/s each way.")
    store_gbps: Positive = Field(description="Rate of an object store to all machines together, Gbit/s.")
    folder_gbs: Positive = Field(
        description="Disks of a shared folder, where where.store is one, to all machines together, GB/s."
    )
    load_megapixels: Positive = Field(
        description="Megapixels of pictures that one core decodes, resizes and cuts for training, per second."
    )
    answers: Positive | None = Field(
        default=None, description="Answers that one GPU gives per second, where measured."
    )
    copy_gbs: Positive = Field(description="A worker's copy of a checkpoint to host memory, GB/s.")
    save_gbs: Positive = Field(description="A worker's writing of that copy, GB/s.")
    clean_start_s: NonNegative = Field(description="Start of the clean stage, before its work begins, s.")
    pack_start_s: NonNegative = Field(description="Start of the pack stage, s.")
    train_start_s: NonNegative = Field(description="Start of the train stage: workers, weights, s.")
    evaluate_start_s: NonNegative = Field(description="Start of the evaluate stage, s.")
    mtbf_hours: Positive = Field(description="Mean time between failures of one machine, hours.")
    restart_s: NonNegative = Field(description="From a failure until the work goes on, s.")
    price: NonNegative = Field(description="Price of a machine, USD per hour.")
    store_price: NonNegative = Field(description="Price of the store, USD per GB and month.")
    sources: dict[str, str] = Field(default={}, description="Where each number comes from.")

    @property
    def as_gpu(self) -> Gpu:
        """One of its GPUs."""
        return Gpu(self.gpu, self.gpu_memory_gib, self.gpu_tflops, self.gpu_bandwidth_gbs)


def read_node(file: Path | None = None, given: Sequence[str] = ()) -> Node:
    """A machine: the default one, changed by a file and by single settings.

    Args:
        file: YAML with what differs.
        given: ``key=value`` each, over the file.

    Raises:
        ConfigError: For a file that is missing or no YAML mapping, an unknown setting, or a wrong value.
    """
    values = _mapping(DEFAULT_NODE)
    sources = values.pop("sources")
    changes = _mapping(file) if file is not None else {}
    own = changes.pop("sources", {})
    named = str(file.name) if file is not None else ""
    sources |= {name: own.get(name, named) if isinstance(own, dict) else own for name in changes}
    for text in given:
        name, value = _typed(text)
        changes[name], sources[name] = value, "as given"
    values |= changes
    for name in (name for name in values if name not in Node.model_fields):
        raise ConfigError(
            f"A machine has no setting `{name}`.",
            f"It has {', '.join(Node.model_fields)}.",
            did_you_mean(name, Node.model_fields, "Leave it out."),
        )
    if isinstance(values["gpu"], str):
        sources |= _fill_from_table(values)
    try:
        return Node.model_validate(values | {"sources": sources})
    except ValidationError as error:
        said = explain(error, values, Node, f"the machine {values.get('name')}")
        raise ConfigError(
            said.what, said.why, "Correct it in the file of --node-file, or with `--node KEY=VALUE`."
        ) from None


def _mapping(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"There is no machine description {file}.", "", f"Copy {DEFAULT_NODE} and change it."
        )
    values = parse_yaml(file.read_text(encoding="utf-8"), f"the machine description {file}")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} describes no machine.", "It is not a mapping of settings.", f"Start from {DEFAULT_NODE}."
        )
    return values


def _typed(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or name in ("sources", ""):
        raise ConfigError(
            f"`--node {text}` is no setting of a machine.",
            "It has the form KEY=VALUE.",
            "For example `--node price=30` or `--node gpu=H200`.",
        )
    return name, parse_yaml(value, f"the value of `--node {text}`")


def _fill_from_table(values: dict[str, Any]) -> dict[str, str]:
    """Add what the table of GPUs has and ``values`` lacks; returns the sources of what was added.

    Raises:
        ConfigError: If something is lacking and the GPU is not in the table.
    """
    lacking = [name for name in _OF_THE_GPU if name not in values]
    if not lacking:
        return {}
    if values["gpu"].lower() not in map(str.lower, GPUS):
        raise ConfigError(
            f"There is no GPU called {values['gpu']!r} in the table.",
            f"Known: {', '.join(GPUS)}. Of another one, {', '.join(lacking)} must be given.",
            f"Give them, for example `--node {lacking[0]}=80`, or one of the table.",
        )
    gpu = find_gpu(values["gpu"])
    values |= {"gpu": gpu.name} | {name: getattr(gpu, _OF_THE_GPU[name]) for name in lacking}
    return dict.fromkeys(lacking, f"data sheet of {gpu.name}, casa_core/hardware.py")
