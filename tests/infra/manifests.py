"""Renders the manifests of `infra/kuberay` as a cluster would get them, and checks them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from tests.infra.kuberay_schema import SPECS, check_fields

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
KUBERNETES = "1.37"
RENDERED = (
    "account",
    "base",
    "nightly",
    "overlays/eks",
    "overlays/kueue",
    "overlays/raycronjob",
    "serve",
)
Document = dict[str, Any]


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def kubectl() -> str:
    """Find a kubectl whose kustomize knows `replacements`; skip the test if there is none."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on this machine: kustomizations are not rendered")
    told = subprocess.run(
        [program, "version", "--client", "--output", "json"], capture_output=True, check=True
    )
    if not json.loads(told.stdout).get("kustomizeVersion", "v0").startswith("v5."):
        pytest.skip("the kubectl of this machine is older than 1.27: kustomizations need v5")
    return program


@cache
def _kustomized(folder: Path) -> str:
    command = [kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(name: str, root: Path = KUBERAY) -> list[Document]:
    """Render a folder of `infra/kuberay`, or of a copy of it, with `kubectl kustomize`."""
    return documents(_kustomized(root / name))


def only(kind: str, found: list[Document]) -> Document:
    (document,) = [document for document in found if document["kind"] == kind]
    return document


def settings() -> dict[str, str]:
    (document,) = documents((KUBERAY / "settings" / "settings.yaml").read_text())
    return document["data"]


def ray_job(name: str) -> Document:
    """Return the spec of a rendered folder's run, which may be the template of a RayCronJob."""
    for document in render(name):
        if document["kind"] in ("RayJob", "RayCronJob"):
            return document["spec"].get("jobTemplate", document["spec"])
    raise AssertionError(f"{name} has no run")


def autoscaler_container(cluster: Document) -> Document:
    """Return the container that KubeRay adds to the head's pod, with the manifest's options."""
    given = {key: value for key, value in cluster["autoscalerOptions"].items() if key in _SHARED}
    return {"name": "autoscaler", "image": "of-the-head", **given}


_SHARED = ("resources", "securityContext", "volumeMounts", "env", "envFrom", "command", "args")


def pod_templates(document: Document) -> Iterator[tuple[str, Document]]:
    """Find every pod template of an object by name; the head's includes the autoscaler."""
    spec: Document = document.get("spec", {})
    if document["kind"] == "CronJob":
        yield "job", spec["jobTemplate"]["spec"]["template"]
    if document["kind"] not in SPECS:
        return
    job = spec.get("jobTemplate", spec)
    if "submitterPodTemplate" in job:
        yield "submitter", job["submitterPodTemplate"]
    cluster = job.get("rayClusterSpec", job.get("rayClusterConfig", job))
    head = cluster["headGroupSpec"]["template"]
    if cluster.get("enableInTreeAutoscaling"):
        containers = [*head["spec"]["containers"], autoscaler_container(cluster)]
        head = {**head, "spec": {**head["spec"], "containers": containers}}
    yield "head", head
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def check(document: Document) -> None:
    """Raise ValidationError unless Kubernetes, with KubeRay's CRDs, would accept the object.

    The check is strict: unknown fields are errors.
    """
    if document["kind"] in SPECS:
        check_fields(document)
    else:
        validate(document, KUBERNETES, strict=True)
    for name, template in pod_templates(document):
        wrapped = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": name},
            "template": template,
        }
        validate(wrapped, KUBERNETES, strict=True)
