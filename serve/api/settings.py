"""Settings and limits of one deployment. The deploy stage sends them as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.endpoint_settings import Access, Count, Limits


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Replicas(_Section):
    """Least and largest number of Ray Serve replicas."""

    min: Count
    max: Count
    up_after_s: float = Field(default=10.0, ge=0, description="Seconds for which more must be wanted.")
    down_after_s: float = Field(default=300.0, ge=0, description="Seconds for which fewer must be wanted.")


class Checkpoint(_Section):
    """A checkpoint that is served."""

    folder: str = Field(description="Exported checkpoint folder; a URI where `digest` is given.")
    fingerprint: str = Field(default="", description="Of the training run, or of the folder's files.")
    digest: str = Field(default="", description="Of its files, where `fetch` must copy them.")


class ServeSettings(_Section):
    """One deployment: which checkpoints, under which names, with what limits."""

    model_folder: Path = Field(
        description="Exported checkpoint folder: config, weights, tokenizer, processor."
    )
    model_name: str = Field(min_length=1, description="The name clients put in `model`.")
    fingerprint: str = Field(default="", description="Identity of this deployment; /healthz reports it.")
    checkpoint: str = Field(default="", description="Fingerprint of the training run the weights come from.")
    models: dict[str, Checkpoint] = Field(
        default={}, description="Further checkpoints, by the names clients put in `model`."
    )
    models_per_engine: Count = Field(
        default=2, description="Models that a replica holds at a time; others are loaded in their place."
    )
    max_new_tokens: Count = Field(
        description="Longest answer, tokens: when a request names none, and the most it may name.",
    )
    max_tokens_per_frame: Count = Field(
        default=16, description="Longest caption of one live frame, tokens; likewise default and bound."
    )
    live_query: str = Field(description="Query of a live session whose client names none.")
    demo_clips: Path | None = Field(default=None, description="Folder of mp4 files the live page offers.")
    fetch: str = Field(
        default="",
        description="Context manager, as module:name, from a folder's URI and digest to a local copy of it.",
    )
    digests: dict[str, str] = Field(
        default={}, description="Digest of each folder's files, by setting, for those that `fetch` must copy."
    )
    engine: str = Field(default="casa_core.engine.engine:Engine", description="Engine class, as module:name.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Type to compute in; `auto`: that of the checkpoint."
    )
    compile: bool = Field(default=False, description="Compile decode steps before the replica is ready.")
    graphs: bool = Field(
        default=False, description="Record decode steps and the vision tower as CUDA graphs."
    )
    quantize: Literal["none", "int8"] = Field(
        default="none", description="Type in which decode steps hold the weights, on CPUs; `none`: `dtype`."
    )
    replicas: Replicas
    endpoints: Count = Field(default=1, description="Ray Serve replicas that clients connect to.")
    num_cpus: float = Field(default=0.5, ge=0, description="CPUs that Ray reserves for each replica.")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for each replica.")
    log: Literal["text", "json"] = Field(
        default="text",
        description="Form of the lines that each request and live session leaves in the log.",
    )
    loopback_only: bool = Field(
        default=True, description="Keep the replicas' internal ports on 127.0.0.1 as well."
    )
    limits: Limits = Limits()
    access: Access = Access()

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """All checkpoints that are served, by their names; the deployment's own is the first."""
        own = Checkpoint(folder=str(self.model_folder), fingerprint=self.checkpoint)
        return {self.model_name: own, **self.models}
