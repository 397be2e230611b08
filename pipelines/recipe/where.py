"""``where``: on what a run executes. Nothing here is part of any fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.dag.code_version import STAGE_MODULES
from pipelines.recipe.fields import Count, Index, Port, Section
from pipelines.storage.uri import open_folder
from pipelines.text_format import parse_duration

Device = Literal["auto", "cpu", "gpu"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class RayCluster(Section):
    """The Ray cluster that runs the stages."""

    address: str = Field(
        default="local",
        description="`local` for a head of our own, or a cluster's dashboard, http://host:8265.",
    )
    num_cpus: Count = Field(
        default=4, description="CPUs a local head hands out; more than the machine has is fine."
    )
    object_store_mb: Annotated[int, Field(ge=80)] = Field(
        default=256, description="A local head's object store, MiB."
    )
    code: Literal["sent", "installed"] = Field(
        default="sent",
        description="Code of a remote cluster's jobs: this project's is sent along, or `installed` there "
        "in the same version.",
    )
    working_dir: str | None = Field(
        default=None,
        description="Folder of further code that is sent to a remote cluster's jobs; at most 100 MiB.",
    )
    pass_env: list[str] = Field(
        default=[],
        description="Environment variables handed on to a remote cluster's jobs, such as HF_TOKEN. All who "
        "may list its jobs can read them.",
    )

    @field_validator("address")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value == "local" or value.startswith(("http://", "https://")):
            return value
        raise ValueError("expected `local` or the URL of a dashboard, for example http://head:8265")

    @property
    def is_local(self) -> bool:
        return self.address == "local"


class DataWorkers(Section):
    """Workers of the data stages and of batch evaluation."""

    workers: Count = Field(default=2, description="Ray workers that read, clean, pack and evaluate.")


class TrainWorkers(Section):
    """Workers of training."""

    workers: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=2,
        description="Training processes; each takes its share of the global batch. [2, 8]: starts with what "
        "the cluster has of them, and takes in and loses nodes.",
    )
    blind_workers: Count | None = Field(
        default=None,
        description="Training processes of the blind baseline, which has no pictures to look at and is done "
        "sooner; otherwise as many as `workers`.",
    )
    cpus_per_worker: Count = Field(default=1, description="CPUs Ray reserves for each training process.")
    device: Device = Field(
        default="auto",
        description="`auto`: a GPU for each worker where the cluster has GPUs; `gpu` waits for them on a "
        "cluster that grows; `cpu` leaves them alone.",
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(
        default=2, description="DeepSpeed ZeRO stage, 0 to 3."
    )
    sequences_per_forward: Count | None = Field(
        default=None,
        description="Packed sequences in one forward; a worker accumulates over the rest of its share. "
        "Otherwise all at once.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more time."
    )
    loader_threads: Count = Field(
        default=4, description="Threads of each worker that read and decode ahead of the step."
    )
    steps_ahead: Count = Field(
        default=2, description="Steps whose batches are prepared ahead, in host memory."
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none", description="What lives in host memory: AdamW's state and update, or weights too."
    )

    checkpoints: str | None = Field(
        default=None,
        description="Where checkpoints go instead of `store`: a folder that every node sees, or "
        "`s3://bucket/prefix`.",
    )
    scoring_gpus: float = Field(
        default=0.0,
        ge=0,
        description="GPUs that Ray reserves where `train.score_every` scores a copy of the model; 0: a CPU.",
    )
    keep: Count = Field(default=2, description="Newest checkpoints that are kept.")
    keep_best: Index = Field(
        default=1, description="Checkpoints of the lowest held-out loss that are kept besides."
    )
    track: list[TrackerName] = Field(
        default=["tensorboard"],
        description="Where curves go, besides the artifact's metrics.jsonl; those of TensorBoard lie in "
        "`store`/tracking.",
    )
    max_failures: Index = Field(
        default=3, description="How often lost workers and nodes are replaced before the stage fails."
    )

    @property
    def fewest(self) -> int:
        """Workers needed to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """Workers that are used where the cluster has them."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def of_blind(self) -> Self:
        """The same for the training of the blind baseline."""
        return self.model_copy(update={"workers": self.blind_workers or self.workers, "blind_workers": None})

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.workers, list) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers = {self.workers} begins with more than it ends with; turn it round")
        if self.checkpoints is not None:
            open_folder(self.checkpoints)
        return self

    @model_validator(mode="after")
    def _offloads_what_is_sharded(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload = {self.offload} needs zero_stage {needed} or more, and it is {self.zero_stage}: "
                f"only what is sharded can live in host memory; set zero_stage to {needed}"
            )
        return self


class ServeAddress(Section):
    """Where the endpoint listens."""

    host: str = Field(
        default="127.0.0.1", description="Interface to listen on; loopback unless you say otherwise."
    )
    port: Port = Field(default=8000, description="HTTP and WebSocket port of the endpoint and the live page.")
    log: Literal["text", "json"] = Field(
        default="text",
        description="Form of the replicas' log lines: for people, or JSON objects.",
    )


class S3Server(Section):
    """An S3 server other than Amazon's, for `store`, `data_store` and `train.checkpoints`."""

    endpoint: str | None = Field(
        default=None, description="Its URL, http://host:port; otherwise AWS_ENDPOINT_URL, or Amazon's."
    )
    region: str | None = Field(default=None, description="Its region; otherwise AWS_REGION.")

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is None or value.startswith(("http://", "https://")):
            return value
        raise ValueError("expected a URL, for example http://127.0.0.1:9000")


class Where(Section):
    """On what the run executes: changing it never re-runs anything."""

    store: str = Field(
        default="runs",
        description="Where all of a run lies: a folder that every node sees, relative to where you run, or "
        "`s3://bucket/prefix`.",
    )
    data_store: str | None = Field(
        default=None,
        description="Where the data artifacts (corpus, clean, pack) live instead of in `store`, likewise.",
    )
    s3: S3Server = Field(
        default_factory=S3Server, description="How S3 is reached; else the environment says."
    )
    ray: RayCluster = Field(default_factory=RayCluster, description="The cluster.")
    data: DataWorkers = Field(default_factory=DataWorkers, description="Workers of data and evaluation.")
    train: TrainWorkers = Field(default_factory=TrainWorkers, description="Workers of training.")
    serve: ServeAddress = Field(default_factory=ServeAddress, description="Address of the endpoint.")
    parallel_stages: Count = Field(default=2, description="Independent stages that may run side by side.")
    retries: Index = Field(
        default=3,
        description="Further attempts at a stage that was lost, or whose store was out of reach; at one that "
        "ran out of memory or time, one at most. A stage's own errors are not tried again.",
    )
    timeouts: dict[str, str] = Field(
        default={},
        description="How long an attempt at a stage may take, by its name or kind: {train: 6h, clean-vqa: "
        "30m}. One that takes longer is ended; a stage that is not named takes what it takes.",
    )

    @field_validator("timeouts")
    @classmethod
    def _name_stages_and_durations(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name.partition("-")[0] not in STAGE_MODULES:
                kinds = ", ".join(STAGE_MODULES)
                raise ValueError(
                    f"no stage is called {name}; name a kind ({kinds}) or a stage, as train-blind"
                )
            parse_duration(text)
        return value

    @field_validator("store", "data_store")
    @classmethod
    def _can_hold_artifacts(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.strip():
                raise ValueError("expected the path of a folder, or s3://bucket/prefix")
            open_folder(value)
        return value

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        for name, train in (("workers", self.train), ("blind_workers", self.train.of_blind())):
            needed = train.fewest * train.cpus_per_worker
            if self.ray.is_local and needed > self.ray.num_cpus:
                raise ValueError(
                    f"train.{name} times train.cpus_per_worker = {needed} is more than "
                    f"ray.num_cpus = {self.ray.num_cpus}, so training would wait for ever; "
                    f"raise ray.num_cpus or lower train.{name}"
                )
        return self
