"""The example of a production endpoint is one that Ray Serve and the application take."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from serve.api.settings import ServeSettings
from serve.app import ENDPOINT, ENGINE, build

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "infra" / "serve.yaml").read_text())


def test_ray_serve_takes_the_production_configuration():
    schema = ServeDeploySchema.model_validate(CONFIG)
    [application] = schema.applications
    assert application.import_path == "serve.app:build"
    assert {one.name for one in application.deployments} <= {ENDPOINT, ENGINE}


def test_its_arguments_are_the_applications_own_and_ask_for_keys_beyond_loopback():
    [application] = CONFIG["applications"]
    settings = ServeSettings.model_validate(application["args"])
    assert not settings.loopback_only
    assert settings.access.keys
    assert build(application["args"]) is not None
