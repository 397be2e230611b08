"""What `kubectl apply -k infra/kubernetes/…` sends is what KubeRay, Kubernetes and this project take."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import Any

import pytest
import typer
import yaml

pytest.importorskip("lightkube", reason="pip install -e '.[dev]' brings Kubernetes' types")
from lightkube.models import apps_v1, core_v1
from ray.serve.schema import ServeDeploySchema

from pipelines.cli.app import app
from pipelines.recipe.load import load_recipe
from serve.api.settings import ServeSettings
from tests.support.infra import kuberay
from tests.support.infra.kustomize import render
from tests.support.infra.schema import problems
from tests.support.paths import ROOT

FOLDER = ROOT / "infra" / "kubernetes"
OVERLAYS = ("cluster", "train", "evaluate", "serve", "laptop", "monitoring")
RENDERED = {name: render(FOLDER / name) for name in OVERLAYS}
OBJECTS = [
    pytest.param(one, id=f"{name}-{one['kind']}-{one['metadata']['name']}")
    for name, objects in RENDERED.items()
    for one in objects
]
KUBERNETES = {
    kind.__name__: kind
    for kind in (
        *(core_v1.ConfigMap, core_v1.Namespace, core_v1.PersistentVolumeClaim, core_v1.Service),
        apps_v1.StatefulSet,
    )
}


def of_kind(overlay: str, kind: str) -> dict[str, Any]:
    [found] = [one for one in RENDERED[overlay] if one["kind"] == kind]
    return found["spec"]


CLUSTERS = {
    "cluster": of_kind("cluster", "RayCluster"),
    "train": of_kind("train", "RayJob")["rayClusterSpec"],
    "evaluate": of_kind("evaluate", "RayCronJob")["jobTemplate"]["rayClusterSpec"],
    "serve": of_kind("serve", "RayService")["rayClusterConfig"],
    "laptop": of_kind("laptop", "RayJob")["rayClusterSpec"],
}
JOBS = {
    "train": of_kind("train", "RayJob"),
    "evaluate": of_kind("evaluate", "RayCronJob")["jobTemplate"],
    "laptop": of_kind("laptop", "RayJob"),
}


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    return [group["template"]["spec"] for group in groups]


ALL_PODS = [
    pytest.param(pod, id=f"{overlay}-{pod['containers'][0]['name']}-{index}")
    for overlay, cluster in CLUSTERS.items()
    for index, pod in enumerate(pods(cluster))
]


@pytest.mark.parametrize("one", OBJECTS)
def test_every_object_has_the_fields_and_types_of_its_kind(one: dict[str, Any]):
    kind = (KUBERNETES | kuberay.KINDS)[one["kind"]]
    assert not list(problems(one, kind))


def test_the_check_finds_typos_missing_fields_and_wrong_types():
    [spoilt] = [one for one in render(FOLDER / "train") if one["kind"] == "RayJob"]
    spoilt["spec"]["submissionMode"] = "Sidecar"
    spoilt["spec"]["backOffLimit"] = 3
    head = spoilt["spec"]["rayClusterSpec"]["headGroupSpec"]
    head["rayStartParams"]["num-cpus"] = 0
    del head["template"]["spec"]["containers"][0]["name"]
    assert len(list(problems(spoilt, kuberay.RayJob))) == 4


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same(overlay: str):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed here")
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    by_name = lambda one: (one["kind"], one["metadata"]["name"])  # noqa: E731
    assert sorted(yaml.safe_load_all(text), key=by_name) == sorted(RENDERED[overlay], key=by_name)


@pytest.mark.parametrize(("overlay", "name"), [("train", "run.yaml"), ("laptop", "run.yaml")])
def test_a_jobs_recipe_is_one_and_lies_where_its_command_looks(overlay: str, name: str):
    recipe = load_recipe(str(FOLDER / overlay / name))
    assert recipe.where.ray.address == "http://127.0.0.1:8265"
    assert f"/etc/casa/run/{name}" in JOBS[overlay]["entrypoint"].split()
    [head, *_] = pods(CLUSTERS[overlay])
    assert {"name": "run", "mountPath": "/etc/casa/run", "readOnly": True} in head["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "run", "configMap": {"name": "casa-run", "optional": True}} in head["volumes"]


def test_the_training_cluster_has_a_gpu_and_its_cpus_for_every_worker():
    train = load_recipe(str(FOLDER / "train" / "run.yaml")).where.train
    [group] = [one for one in CLUSTERS["train"]["workerGroupSpecs"] if one["groupName"] == "gpu"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"])
    assert train.workers == gpus * group["maxReplicas"] == 64
    assert train.device == "gpu"
    assert int(limits["cpu"]) >= gpus * train.cpus_per_worker


@pytest.mark.parametrize("overlay", JOBS)
def test_a_jobs_command_is_one_of_ours(overlay: str):
    program, name, *arguments = shlex.split(JOBS[overlay]["entrypoint"])
    assert program == "casa"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


@pytest.mark.parametrize("overlay", JOBS)
def test_what_kuberay_refuses_in_a_job_is_not_there(overlay: str):
    job, cluster = JOBS[overlay], CLUSTERS[overlay]
    rules = job["deletionStrategy"]["deletionRules"]
    conditions = [{key for key in rule["condition"] if key != "ttlSeconds"} for rule in rules]
    assert all(len(one) == 1 for one in conditions)
    assert len({(str(rule["condition"]), rule["policy"]) for rule in rules}) == len(rules)
    assert not any(rule["policy"] == "DeleteWorkers" for rule in rules)  # not with the autoscaler
    assert "shutdownAfterJobFinishes" not in job
    assert job["submissionMode"] == "SidecarMode"
    assert "gcsFaultToleranceOptions" not in cluster  # of no use: the job ends with its head


@pytest.mark.parametrize("overlay", CLUSTERS)
def test_every_cluster_runs_the_ray_that_the_tests_run_and_asks_for_a_token(overlay: str):
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    cluster = CLUSTERS[overlay]
    assert cluster["rayVersion"] == pins["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    for pod in pods(cluster):
        assert f"-ray{pins['ray']}-" in pod["containers"][0]["image"]
        assert "restartPolicy" not in pod  # autoscaler v2 and SidecarMode take none but Never


@pytest.mark.parametrize("overlay", ["cluster", "train", "evaluate", "serve"])
def test_clusters_that_grow_do_so_by_the_second_autoscaler_within_their_bounds(overlay: str):
    cluster = CLUSTERS[overlay]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("overlay", ["cluster", "serve"])
def test_a_standing_cluster_outlives_its_head(overlay: str):
    options = CLUSTERS[overlay]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis://casa-redis:6379"
    [service] = [one for one in RENDERED[overlay] if one["kind"] == "Service"]
    redis = of_kind(overlay, "StatefulSet")
    assert service["metadata"]["name"] == redis["serviceName"] == "casa-redis"
    assert service["spec"]["selector"] == redis["selector"]["matchLabels"]


@pytest.mark.parametrize("pod", ALL_PODS)
def test_pods_run_as_a_user_and_every_mount_has_its_volume(pod: dict[str, Any]):
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {one["name"] for one in pod["volumes"]}
    [container] = pod["containers"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    assert "/dev/shm" in {one["mountPath"] for one in container["volumeMounts"]}


@pytest.mark.parametrize("one", OBJECTS)
def test_secrets_are_named_and_never_written_down(one: dict[str, Any]):
    assert one["kind"] != "Secret"
    text = yaml.safe_dump(one)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        assert name not in text


@pytest.mark.parametrize("one", OBJECTS)
def test_every_image_has_a_version(one: dict[str, Any]):
    for line in yaml.safe_dump(one).splitlines():
        if "image: " in line:
            tag = line.rpartition(":")[2]
            assert tag[:1].isdigit()
            assert tag != "latest"


def test_the_served_application_is_one_that_ray_serve_and_ours_take():
    service = of_kind("serve", "RayService")
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"])).applications
    settings = ServeSettings.model_validate(application.args)
    example = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text())["applications"][0]
    assert application.import_path == example["import_path"]
    assert not settings.loopback_only
    mounts = [one["mountPath"] for one in pods(CLUSTERS["serve"])[1]["containers"][0]["volumeMounts"]]
    for needed in (settings.model_folder, settings.access.keys):
        assert any(str(needed).startswith(f"{mount}/") for mount in mounts), needed


def test_an_endpoint_is_rolled_out_in_steps_that_kuberay_takes():
    service = of_kind("serve", "RayService")
    assert service["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    options = service["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert options["intervalSeconds"] > 0
    assert service["rayClusterConfig"]["enableInTreeAutoscaling"]
    engines = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["replicas"]["max"]
    [group] = service["rayClusterConfig"]["workerGroupSpecs"]
    assert group["maxReplicas"] >= engines * 1.25  # deployments[engine].max_surge_percent
