"""The manifests are valid, have few rights, and agree with one another and with the code."""

import copy
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay import autoscaling_config

from jobs.cluster.node_labels import matches
from jobs.cluster.placement import Node, placement_on
from tests.infra.manifests import (
    KUBERAY,
    RENDERED,
    ROOT,
    Document,
    check,
    documents,
    kubectl,
    pod_templates,
    ray_job,
    render,
    settings,
)
from tests.support.parsed import label_options

RUNS = ("base", "overlays/eks", "overlays/kueue", "overlays/raycronjob")
GI = 2**30
MOST_PODSETS = 8  # that Kueue allows in a workload: submitter, head, and groups
PLACEHOLDERS = "INPUT|OUTPUT|IMAGE|GPU|CPU|ACCELERATOR|SCHEDULE|TIME_ZONE|ROLE|QUEUE"
PLACEHOLDERS += "|OPERATOR|MONITORING"


def memory(quantity: str) -> int:
    assert quantity.endswith("Gi"), quantity
    return int(quantity.removesuffix("Gi")) * GI


def containers(document: Document) -> list[tuple[Document, Document]]:
    """Find every container with its pod, including those that KubeRay adds by our options."""
    return [
        (container, template["spec"])
        for _, template in pod_templates(document)
        for part in ("initContainers", "containers")
        for container in template["spec"].get(part, [])
    ]


@pytest.mark.parametrize("name", RENDERED)
def test_clusters_take_what_is_rendered(name: str) -> None:
    found = render(name)
    assert found
    for document in found:
        check(document)


def test_run_is_valid_before_it_is_rendered() -> None:
    """This needs no kubectl, because placeholders are valid values."""
    (document,) = documents((KUBERAY / "base" / "rayjob.yaml").read_text())
    check(document)


@pytest.mark.parametrize(
    "path, value",
    [
        (["backofLimit"], 1),
        (["backoffLimit"], "1"),
        (["submissionMode"], "JobMode"),
        (["rayClusterSpec", "enableAutoscaling"], True),
        (["rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"], "4"),
        (["rayClusterSpec", "headGroupSpec", "template", "spec", "tolerations"], "all"),
        (["submitterPodTemplate", "spec", "containers", 0, "securityContexts"], {}),
        (["rayClusterSpec", "autoscalerOptions", "securityContext", "runAsNonRot"], True),
    ],
)
def test_mistakes_are_found(path: list[str | int], value: Any) -> None:
    (document,) = documents((KUBERAY / "base" / "rayjob.yaml").read_text())
    broken = copy.deepcopy(document)  # a copy, because aliases of YAML share one object
    place = broken["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(broken)


def test_settings_are_the_one_place(tmp_path: Path) -> None:
    """Every setting reaches every kustomization, and no placeholder is left."""
    kubectl()
    copied = tmp_path / "kuberay"
    shutil.copytree(KUBERAY, copied)
    place = copied / "settings" / "settings.yaml"
    document = yaml.safe_load(place.read_text())
    numbers = {"gpus": "17", "cpu-nodes": "23"}
    document["data"] = {key: numbers.get(key, f"of-{key}") for key in document["data"]}
    place.write_text(yaml.safe_dump(document))
    whole = ""
    for name in RENDERED:
        text = yaml.safe_dump_all(render(name, copied), width=1000)
        assert not re.search(rf"\b({PLACEHOLDERS})\b", text)
        assert "config.kubernetes.io/local-config" not in text
        whole += text
    for key, value in document["data"].items():
        assert re.search(rf"\b{value}\b", whole), key
    assert "detr-batch label of-input of-output --num-gpus 17 " in whole


@pytest.mark.parametrize("name", RENDERED)
def test_every_container_is_least_privileged(name: str) -> None:
    for document in render(name):
        for container, pod in containers(document):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            assert not any("hostPath" in volume for volume in pod.get("volumes", []))
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
            assert not own.get("privileged")


@pytest.mark.parametrize("name", RENDERED)
def test_every_container_is_bounded_and_pinned(name: str) -> None:
    for document in render(name):
        for container, _ in containers(document):
            limits, requests = (container["resources"][part] for part in ("limits", "requests"))
            assert {"cpu", "memory"} <= limits.keys() == requests.keys()
            assert re.search(r":\d+\.\d+\.\d+$|^of-the-head$", container["image"])


@pytest.mark.parametrize("name", RENDERED)
def test_tokens_are_mounted_where_the_api_is_spoken_to(name: str) -> None:
    for document in render(name):
        if document["kind"] == "ServiceAccount":
            assert document["automountServiceAccountToken"] is False
        for pod, template in pod_templates(document):
            names = {container["name"] for container in template["spec"]["containers"]}
            speaks = bool({"autoscaler", "run-rayjob"} & names)
            assert template["spec"]["automountServiceAccountToken"] is speaks, pod


@pytest.mark.parametrize("name", RUNS)
def test_every_cluster_wants_a_token(name: str) -> None:
    """KubeRay creates the token for all pods of a run; no pod sets another token or mode."""
    cluster = ray_job(name)["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52), "older ones know no token"
    for pod, template in pod_templates({"kind": "RayJob", "spec": ray_job(name)}):
        for container in template["spec"]["containers"]:
            given = {variable["name"] for variable in container.get("env", [])}
            assert not {one for one in given if "AUTH" in one}, pod


def test_pods_may_write_where_they_must() -> None:
    """Ray's sessions and our caches need /tmp; its object store needs 30 % of memory, /dev/shm."""
    for name, template in pod_templates({"kind": "RayJob", "spec": ray_job("base")}):
        pod = template["spec"]
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "sizeLimit" in volumes[mounts["/tmp"]], name
            if container["name"].startswith("ray-"):
                store = volumes[mounts["/dev/shm"]]
                limit = memory(container["resources"]["limits"]["memory"])
                assert store["medium"] == "Memory"
                assert 0.3 * limit <= memory(store["sizeLimit"]) < 0.4 * limit, name


@pytest.mark.parametrize("name", RUNS)
def test_command_is_one_that_label_takes(name: str) -> None:
    words = shlex.split(ray_job(name)["entrypoint"])
    assert words[:2] == ["detr-batch", "label"]
    options = label_options(words[1:])
    options.check()
    assert options.input == settings()["input"]
    assert options.output == settings()["output"]
    assert (options.device, options.address) == ("cuda", "auto")
    assert words[words.index("--num-gpus") + 1] == settings()["gpus"]


@pytest.mark.parametrize("name", RUNS)
def test_retries_take_up_and_clusters_end(name: str) -> None:
    job = ray_job(name)
    if job["backoffLimit"]:
        assert not {"--relabel", "--dry-run"} & set(job["entrypoint"].split())
    assert job["activeDeadlineSeconds"] < 24 * 3600
    assert job["shutdownAfterJobFinishes"] is True, "a TTL alone ends no cluster"
    assert job["ttlSecondsAfterFinished"] <= 600
    assert "deletionStrategy" not in job, "not beside shutdownAfterJobFinishes"
    if not job.get("suspend"):
        assert job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]


@pytest.mark.parametrize("name", RUNS)
def test_versions_are_those_of_the_project(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert ray
    job = ray_job(name)
    assert job["rayClusterSpec"]["rayVersion"] == ray[1]
    assert tuple(map(int, ray[1].split("."))) >= (2, 53), "KubeRay probes older ones with wget"
    for _, template in pod_templates({"kind": "RayJob", "spec": job}):
        image = template["spec"]["containers"][0]["image"]
        assert image == settings()["image"]
        assert image.split(":")[-1] == version


@pytest.mark.parametrize("name", ["base", "overlays/eks"])
def test_autoscaler_of_ray_understands_the_cluster(name: str) -> None:
    """Ray itself derives from the object what each group offers before it has nodes."""
    cluster = {
        "metadata": {"name": "run", "namespace": "detr-batch"},
        "spec": ray_job(name)["rayClusterSpec"],
    }
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    kinds = derived["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert kinds["cpu"]["resources"]["CPU"] >= 1
    assert "GPU" not in kinds["cpu"]["resources"]
    assert kinds["gpu"]["resources"]["GPU"] == 1
    accelerator = settings()["accelerator-type"]
    assert kinds["gpu"]["labels"]["ray.io/accelerator-type"] == accelerator
    assert "ray.io/accelerator-type" not in kinds["cpu"]["labels"]
    for kind, most in (("cpu", "cpu-nodes"), ("gpu", "gpus")):
        assert kinds[kind]["min_workers"] == 0, "a night with nothing new starts none"
        assert kinds[kind]["max_workers"] == int(settings()[most])


@pytest.mark.parametrize("name", ["base", "overlays/eks"])
def test_the_run_fits_what_the_autoscaler_may_make(name: str) -> None:
    """GPU nodes are for detectors only, even before the first of these nodes exists."""
    job = ray_job(name)
    cluster = {"metadata": {"name": "run", "namespace": "d"}, "spec": job["rayClusterSpec"]}
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    kinds = derived["available_node_types"]
    groups = {k: Node(kinds[k]["resources"], kinds[k]["labels"]) for k in ("cpu", "gpu")}
    options = label_options(shlex.split(job["entrypoint"])[1:])
    place = placement_on(options.machines(), [], cluster=True)
    nodes = [node for kind, node in groups.items() for _ in range(kinds[kind]["max_workers"])]
    assert place.lacks(nodes) is None
    assert matches(groups["cpu"].labels, place.layout.nodes)
    assert not matches(groups["gpu"].labels, place.layout.nodes)


def test_workers_may_be_on_spot_and_the_head_is_not() -> None:
    templates = dict(pod_templates({"kind": "RayJob", "spec": ray_job("overlays/eks")}))
    for template in templates.values():
        for toleration in template["spec"].get("tolerations", []):  # no schema lists these values
            assert toleration["operator"] == "Exists"
            assert toleration["effect"] == "NoSchedule"
    tolerated = {
        name: {toleration["key"] for toleration in template["spec"].get("tolerations", [])}
        for name, template in templates.items()
    }
    assert tolerated["head"] == tolerated["submitter"] == set()
    assert tolerated["cpu"] == {"spot"}
    assert tolerated["gpu"] == {"spot", "nvidia.com/gpu"}
    pools = {
        pool["metadata"]["name"].removeprefix("detr-batch-"): pool["spec"]["template"]["spec"]
        for pool in documents((KUBERAY / "overlays" / "eks" / "nodepools.yaml").read_text())
    }
    for name in ("cpu", "gpu"):
        assert {taint["key"] for taint in pools[name]["taints"]} == tolerated[name]
        wanted = templates[name]["spec"]["nodeSelector"]
        assert wanted["node.kubernetes.io/instance-type"] == settings()[f"{name}-instance-type"]
        assert wanted["karpenter.sh/capacity-type"] == "spot"
        family = wanted["node.kubernetes.io/instance-type"][0]
        offered = {rule["key"]: rule["values"] for rule in pools[name]["requirements"]}
        assert family in offered["eks.amazonaws.com/instance-category"]
        assert offered["karpenter.sh/capacity-type"] == ["spot"]
    for name in ("head", "submitter"):
        selector = templates[name]["spec"]["nodeSelector"]
        assert selector == {"karpenter.sh/capacity-type": "on-demand"}


def test_kueue_gets_a_run_that_it_can_admit() -> None:
    (document,) = render("overlays/kueue")
    job, cluster = document["spec"], document["spec"]["rayClusterSpec"]
    labels = document["metadata"]["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": settings()["queue"]}
    assert job["suspend"] is True
    assert cluster["enableInTreeAutoscaling"] is False
    assert job["shutdownAfterJobFinishes"] is True
    assert not {"clusterSelector", "deletionStrategy"} & set(job)
    assert 2 + len(cluster["workerGroupSpecs"]) <= MOST_PODSETS
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_ray_cron_job_has_the_run_of_base() -> None:
    (document,) = render("overlays/raycronjob")
    spec = document["spec"]
    assert spec["jobTemplate"] == ray_job("base")
    assert spec["schedule"] == settings()["schedule"]
    assert spec["timeZone"] == settings()["time-zone"]
