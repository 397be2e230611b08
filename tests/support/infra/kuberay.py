"""The fields of KubeRay 1.7's kinds that infra/kubernetes uses, and of the Prometheus operator's.

A field that is added to a manifest is added here, with its type and values as in the resource definition.
`tests/infra/kubernetes/test_definitions.py` holds these classes to the definitions themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightkube.models.core_v1 import EnvVarSource, PodTemplateSpec, ResourceRequirements, SecretKeySelector
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta


@dataclass
class AuthOptions:
    mode: Literal["disabled", "token"] | None = None


@dataclass
class AutoscalerOptions:
    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: int | None = None
    imagePullPolicy: str | None = None
    resources: ResourceRequirements | None = None


@dataclass
class RedisCredential:
    value: str | None = None
    valueFrom: EnvVarSource | None = None


@dataclass
class GcsFaultToleranceOptions:
    redisAddress: str | None = None
    redisPassword: RedisCredential | None = None


@dataclass
class HeadGroupSpec:
    template: PodTemplateSpec
    rayStartParams: dict[str, str] | None = None


@dataclass
class WorkerGroupSpec:
    groupName: str
    template: PodTemplateSpec
    minReplicas: int
    maxReplicas: int
    replicas: int | None = None
    idleTimeoutSeconds: int | None = None
    rayStartParams: dict[str, str] | None = None


@dataclass
class RayClusterSpec:
    headGroupSpec: HeadGroupSpec
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: GcsFaultToleranceOptions | None = None
    workerGroupSpecs: list[WorkerGroupSpec] | None = None


@dataclass
class DeletionCondition:
    jobStatus: Literal["SUCCEEDED", "FAILED"] | None = None
    jobDeploymentStatus: Literal["Failed"] | None = None
    ttlSeconds: int | None = None


@dataclass
class DeletionRule:
    condition: DeletionCondition
    policy: Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]


@dataclass
class DeletionStrategy:
    deletionRules: list[DeletionRule] | None = None


@dataclass
class RayJobSpec:
    entrypoint: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    backoffLimit: int | None = None
    activeDeadlineSeconds: int | None = None
    preRunningDeadlineSeconds: int | None = None
    deletionStrategy: DeletionStrategy | None = None
    rayClusterSpec: RayClusterSpec | None = None


@dataclass
class RayCronJobSpec:
    schedule: str
    jobTemplate: RayJobSpec
    timeZone: str | None = None


@dataclass
class ClusterUpgradeOptions:
    gatewayClassName: str
    stepSizePercent: int
    intervalSeconds: int
    maxSurgePercent: int | None = None


@dataclass
class UpgradeStrategy:
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] | None = None
    clusterUpgradeOptions: ClusterUpgradeOptions | None = None


@dataclass
class RayServiceSpec:
    rayClusterConfig: RayClusterSpec
    serveConfigV2: str | None = None
    upgradeStrategy: UpgradeStrategy | None = None
    rayClusterDeletionDelaySeconds: int | None = None


@dataclass
class RayCluster:
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: ObjectMeta
    spec: RayClusterSpec


@dataclass
class RayJob:
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: ObjectMeta
    spec: RayJobSpec


@dataclass
class RayCronJob:
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCronJob"]
    metadata: ObjectMeta
    spec: RayCronJobSpec


@dataclass
class RayService:
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: ObjectMeta
    spec: RayServiceSpec


@dataclass
class PodMetricsEndpoint:
    port: str | None = None
    path: str | None = None
    interval: str | None = None


@dataclass
class PodMonitorSpec:
    selector: LabelSelector
    podMetricsEndpoints: list[PodMetricsEndpoint] | None = None
    podTargetLabels: list[str] | None = None


@dataclass
class PodMonitor:
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: ObjectMeta
    spec: PodMonitorSpec


@dataclass
class Authorization:
    credentials: SecretKeySelector


@dataclass
class StaticConfig:
    targets: list[str]


@dataclass
class ScrapeConfigSpec:
    staticConfigs: list[StaticConfig]
    metricsPath: str | None = None
    scrapeInterval: str | None = None
    authorization: Authorization | None = None


@dataclass
class ScrapeConfig:
    apiVersion: Literal["monitoring.coreos.com/v1alpha1"]
    kind: Literal["ScrapeConfig"]
    metadata: ObjectMeta
    spec: ScrapeConfigSpec


@dataclass
class Rule:
    alert: str
    expr: str
    for_: str = field(metadata={"json": "for"})
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass
class RuleGroup:
    name: str
    rules: list[Rule]


@dataclass
class PrometheusRuleSpec:
    groups: list[RuleGroup]


@dataclass
class PrometheusRule:
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: ObjectMeta
    spec: PrometheusRuleSpec


KINDS = {
    kind.__name__: kind
    for kind in (RayCluster, RayJob, RayCronJob, RayService, PodMonitor, PrometheusRule, ScrapeConfig)
}
