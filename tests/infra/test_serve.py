"""The manifests of the endpoint: Ray Serve and `detr-batch serve` take what they say."""

import copy
import re
from importlib import import_module
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.serve.schema import ServeDeploySchema

from jobs.serve.settings.options import ServeOptions
from tests.infra.manifests import KUBERAY, Document, check, documents, only, render, settings
from tests.infra.test_network_policy import NAMESPACE, Pod, kuberay_operator, leave, selects

PORT = 8000


def service() -> Document:
    return only("RayService", render("serve"))["spec"]


def configuration() -> Document:
    return yaml.safe_load(service()["serveConfigV2"])


def test_ray_serve_takes_the_configuration() -> None:
    found = ServeDeploySchema.model_validate(configuration())
    (application,) = found.applications
    assert application.import_path == "jobs.serve.deploy:app"
    assert application.route_prefix == "/"
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    assert found.http_options.port == PORT


def test_arguments_are_options_of_serve_and_come_from_the_settings() -> None:
    (application,) = configuration()["applications"]
    given = application["args"]
    ServeOptions(**given, host="0.0.0.0").check()
    assert given == {
        "keys": settings()["serve-keys"],
        "batches": settings()["serve-batches"],
        "num_gpus": settings()["serve-gpus"],
    }


def test_detectors_find_room_in_the_cluster() -> None:
    machines = ServeOptions(num_gpus=settings()["serve-gpus"]).machines()
    groups = {
        group["groupName"]: group for group in service()["rayClusterConfig"]["workerGroupSpecs"]
    }
    assert groups["gpu"]["minReplicas"] == machines.fewest_gpus
    assert machines.most_gpus <= groups["gpu"]["maxReplicas"] == int(settings()["gpus"])
    assert groups["cpu"]["minReplicas"] >= 1, "what answers requests is always there"


def test_a_change_leaves_no_moment_without_replicas() -> None:
    found = service()
    assert found["upgradeStrategy"] == {"type": "NewCluster"}
    assert found["rayClusterDeletionDelaySeconds"] >= 60
    assert found["excludeHeadPodFromServeSvc"] is True


def test_no_placeholder_is_left() -> None:
    text = yaml.safe_dump_all(render("serve"), width=1000)
    assert not re.search(r"\b(KEYS|BATCHES|GPUS|INGRESS|OPERATOR|IMAGE|ACCELERATOR)\b", text)


@pytest.mark.parametrize(
    "path, value",
    [
        (["serveConfigV2"], {}),
        (["rayClusterSpec"], {}),
        (["upgradeStrategy", "type"], "Rolling"),
        (["excludeHeadPodFromServeSvc"], "yes"),
    ],
)
def test_mistakes_are_found(path: list[str], value: Any) -> None:
    (document,) = documents((KUBERAY / "serve" / "rayservice.yaml").read_text())
    check(document)
    broken = copy.deepcopy(document)
    place = broken["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(broken)


@pytest.mark.parametrize(
    "peer, is_allowed",
    [
        (Pod(settings()["ingress-namespace"], {"app": "controller"}), True),
        (kuberay_operator(), True),
        (Pod("elsewhere", {}), False),
        (Pod(NAMESPACE, {"app.kubernetes.io/component": "submitter"}), False),
        ("203.0.113.7", False),
    ],
)
def test_who_may_ask(peer: Pod | str, is_allowed: bool) -> None:
    policies = [
        one
        for name in ("account", "serve")
        for one in render(name)
        if one["kind"] == "NetworkPolicy"
    ]
    for group in service()["rayClusterConfig"]["workerGroupSpecs"]:
        pod = Pod(NAMESPACE, group["template"]["metadata"]["labels"])
        own = only("NetworkPolicy", render("serve"))["spec"]["podSelector"]
        assert selects(own, pod.labels)
        assert leave(policies, pod, peer, PORT, "Ingress") is is_allowed
