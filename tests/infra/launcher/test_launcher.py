"""The files for `ray up` are ones that the installed Ray takes, and describe what a run asks for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.paths import ROOT

FILES = {
    name: yaml.safe_load((ROOT / "infra" / "launcher" / f"{name}.yaml").read_text())
    for name in ("onprem", "aws")
}


def prepared(name: str) -> dict[str, Any]:
    return prepare_config(copy.deepcopy(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_rays_own_validator_takes_it(name: str):
    validate_config(prepared(name))


@pytest.mark.parametrize("name", FILES)
def test_rays_own_validator_refuses_a_field_that_it_does_not_know(name: str):
    from jsonschema import ValidationError

    spoilt = prepared(name)
    spoilt["docker"]["shm_size"] = "200g"
    with pytest.raises(ValidationError, match="shm_size"):
        validate_config(spoilt)


def test_machines_of_ones_own_are_all_used():
    config = prepared("onprem")
    assert config["max_workers"] == len(FILES["onprem"]["provider"]["worker_ips"]) == 8


def test_the_cloud_has_a_gpu_for_each_of_64_workers_and_eight_cpus_besides():
    types = prepared("aws")["available_node_types"]
    assert types["gpu"]["max_workers"] * types["gpu"]["resources"]["GPU"] == 64
    assert types["gpu"]["resources"]["CPU"] >= 64
    assert sum(one["min_workers"] for one in types.values()) == 0
    assert (
        sum(one["max_workers"] for name, one in types.items() if name != "head")
        <= prepared("aws")["max_workers"]
    )


@pytest.mark.parametrize("name", FILES)
def test_a_token_is_asked_for_and_the_dashboard_is_not_open(name: str):
    config = FILES[name]
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/casa/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
