"""Who may talk to whom: the policies that a cluster gets, judged for the pods that it would have.

`allowed` follows the definition of NetworkPolicy: a pod that a policy of a direction selects has
only what such policies allow, and a connection needs the leave of both of its ends.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.infra.manifests import (
    KUBERAY,
    RENDERED,
    ROOT,
    Document,
    check,
    documents,
    pod_templates,
    render,
    settings,
)

RUNS = ("base", "overlays/eks", "overlays/kueue", "overlays/raycronjob")
NAMESPACE = "detr-batch"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # Kubernetes gives it to every namespace
GCS, CLIENT, JOB_SERVER, METRICS, AGENT = 6379, 10001, 8265, 8080, 52365
WORKER_PORTS = (10002, 19999)


@dataclass(frozen=True)
class Pod:
    """One end of a connection within the cluster."""

    namespace: str
    labels: dict[str, str]


Peer = Pod | str  # a string is an address outside of the cluster


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    if selector is None:
        return False
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", "the one operator that the policies have"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def is_peer(described: Document, peer: Peer) -> bool:
    """Whether one entry of `from` or `to` means this end."""
    if block := described.get("ipBlock"):
        if isinstance(peer, Pod):
            return False  # addresses of pods are of no block for sure
        address = ipaddress.ip_address(peer)
        excepted = map(ipaddress.ip_network, block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in network for network in excepted
        )
    if not isinstance(peer, Pod):
        return False
    if "namespaceSelector" in described:
        if not selects(described["namespaceSelector"], {NAMESPACE_LABEL: peer.namespace}):
            return False
    elif peer.namespace != NAMESPACE:
        return False
    return selects(described.get("podSelector", {}), peer.labels)


def leave(policies: list[Document], pod: Pod, peer: Peer, port: int, way: str) -> bool:
    """Whether the policies let a pod have a connection. `way` is "Ingress" or "Egress"."""
    side = {"Ingress": "from", "Egress": "to"}[way]
    found = [
        policy["spec"]
        for policy in policies
        if pod.namespace == policy["metadata"]["namespace"]
        and way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    if not found:
        return True
    for rule in (rule for spec in found for rule in spec.get(way.lower(), [])):
        ports = [one["port"] for one in rule.get("ports", []) if one["protocol"] == "TCP"]
        if (port in ports or "ports" not in rule) and (
            side not in rule or any(is_peer(described, peer) for described in rule[side])
        ):
            return True
    return False


def allowed(source: Peer, target: Peer, port: int) -> bool:
    """Whether one end may open a TCP connection to the other."""
    policies = [one for one in render("account") if one["kind"] == "NetworkPolicy"]
    sends = not isinstance(source, Pod) or leave(policies, source, target, port, "Egress")
    takes = not isinstance(target, Pod) or leave(policies, target, source, port, "Ingress")
    return sends and takes


def pods_of_a_run(name: str = "base") -> dict[str, Pod]:
    """The pods that a rendered run would have: those of its templates, by name."""
    return {
        pod: Pod(NAMESPACE, template.get("metadata", {}).get("labels", {}))
        for document in render(name)
        for pod, template in pod_templates(document)
    }


def kuberay_operator() -> Pod:
    """As the operator's own kustomization and its Helm chart label it."""
    labels = {"app.kubernetes.io/component": "kuberay-operator"}
    return Pod(settings()["operator-namespace"], labels)


def prometheus() -> Pod:
    return Pod(settings()["monitoring-namespace"], {"app.kubernetes.io/name": "prometheus"})


def strangers() -> Iterator[Peer]:
    """Others of the cluster and of the network, some with labels that look like ours."""
    ours = pods_of_a_run()
    yield Pod("default", {})
    yield Pod(NAMESPACE, {})
    yield Pod(NAMESPACE, {"app.kubernetes.io/component": "kuberay-operator"})
    yield Pod(settings()["operator-namespace"], {})
    yield Pod("default", kuberay_operator().labels)
    for pod in ours.values():
        yield Pod("default", pod.labels)
    yield "10.0.0.17"
    yield "198.51.100.7"
    yield "2001:db8::7"


@pytest.mark.parametrize("name", RUNS)
def test_pods_of_every_run_are_those_of_the_rules(name: str) -> None:
    """Overlays keep the labels by which policies choose pods."""
    assert pods_of_a_run(name) == pods_of_a_run()
    found = pods_of_a_run(name)
    assert set(found) == {"head", "cpu", "gpu", "submitter"}
    kinds = {pod: found[pod].labels["app.kubernetes.io/component"] for pod in found}
    assert kinds == {"head": "head", "cpu": "worker", "gpu": "worker", "submitter": "submitter"}


@pytest.mark.parametrize("name", RENDERED)
def test_nothing_is_open_by_oversight(name: str) -> None:
    """Every pod that is ever in the namespace starts with nothing but names."""
    for document in render(name):
        for _, template in pod_templates(document):
            labels = template.get("metadata", {}).get("labels", {})
            assert labels.get("app.kubernetes.io/component"), name
    anybody = Pod(NAMESPACE, {})
    for port in (GCS, CLIENT, JOB_SERVER, METRICS, 22, 80, 443):
        assert not allowed("198.51.100.7", anybody, port)
        assert not allowed(anybody, "198.51.100.7", port)
    assert allowed(anybody, "10.100.0.10", 53)


@pytest.mark.parametrize("name", ["nightly", "account"])
def test_policies_are_there_before_any_run(name: str) -> None:
    policies = [one for one in render(name) if one["kind"] == "NetworkPolicy"]
    assert policies == [one for one in render("account") if one["kind"] == "NetworkPolicy"]
    assert len({policy["metadata"]["name"] for policy in policies}) == len(policies) > 0


def test_nodes_of_ray_talk_to_each_other_on_all_ports() -> None:
    pods = pods_of_a_run()
    nodes = [pods["head"], pods["cpu"], pods["gpu"]]
    for source in nodes:
        for target in nodes:
            for port in (GCS, CLIENT, JOB_SERVER, METRICS, AGENT, *WORKER_PORTS):
                assert allowed(source, target, port)


@pytest.mark.slow
def test_only_who_has_to_reaches_the_job_server() -> None:
    pods = pods_of_a_run()
    assert allowed(pods["submitter"], pods["head"], JOB_SERVER)
    assert allowed(kuberay_operator(), pods["head"], JOB_SERVER)
    for port in (GCS, CLIENT, AGENT, METRICS, *WORKER_PORTS):
        assert not allowed(pods["submitter"], pods["head"], port)
        assert not allowed(kuberay_operator(), pods["head"], port)
    for stranger in strangers():
        for pod in pods.values():
            for port in (GCS, CLIENT, JOB_SERVER, AGENT, METRICS, *WORKER_PORTS):
                assert not allowed(stranger, pod, port), (stranger, pod, port)


def test_prometheus_reads_metrics_and_no_more() -> None:
    pods = pods_of_a_run()
    for node in (pods["head"], pods["cpu"], pods["gpu"]):
        assert allowed(prometheus(), node, METRICS)
        for port in (GCS, CLIENT, JOB_SERVER, AGENT):
            assert not allowed(prometheus(), node, port)
    assert not allowed(prometheus(), pods["submitter"], METRICS)


@pytest.mark.parametrize("metadata", ["169.254.169.254", "fd00:ec2::254"])
def test_nobody_takes_the_role_of_the_machine(metadata: str) -> None:
    """The address at which a machine of EC2 hands out its own credentials."""
    for pod in pods_of_a_run().values():
        for port in (80, 443):
            assert not allowed(pod, metadata, port)


@pytest.mark.parametrize("agent", ["169.254.170.23", "fd00:ec2::23"])
def test_pod_identity_gives_the_role_of_the_run(agent: str) -> None:
    pods = pods_of_a_run()
    for node in ("head", "cpu", "gpu"):
        assert allowed(pods[node], agent, 80)
    assert not allowed(pods["submitter"], agent, 80)


@pytest.mark.parametrize("address", ["198.51.100.7", "10.0.0.17", "2001:db8::7"])
def test_stores_and_the_api_server_are_within_reach(address: str) -> None:
    pods = pods_of_a_run()
    for node in ("head", "cpu", "gpu"):
        assert allowed(pods[node], address, 443)
        for port in (22, 80, JOB_SERVER, 3306):
            assert not allowed(pods[node], address, port)
    assert allowed(pods["head"], address, 6443), "the autoscaler"
    assert not allowed(pods["cpu"], address, 6443)
    assert not allowed(pods["submitter"], address, 443)


def test_a_night_speaks_to_the_api_server_alone() -> None:
    (cron_job,) = [one for one in render("nightly") if one["kind"] == "CronJob"]
    ((_, template),) = pod_templates(cron_job)
    night = Pod(NAMESPACE, template["metadata"]["labels"])
    assert allowed(night, "10.0.0.17", 443)
    assert allowed(night, "10.0.0.17", 6443)
    for pod in pods_of_a_run().values():
        assert not allowed(night, pod, JOB_SERVER)
        assert not allowed(pod, night, JOB_SERVER)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({}, {"a": "1"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchLabels": {"a": "1"}}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {"a": "1"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
    ],
)
def test_selectors_are_understood(selector: Any, labels: dict[str, str], expected: bool) -> None:
    assert selects(selector, labels) is expected


def test_the_guides_ingress_is_valid_and_opens_the_job_server_alone() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "infra" / "README.md").read_text(), re.S)
    ingress, policy = documents(text)
    for document in (ingress, policy):
        check(document)
        assert document["metadata"]["namespace"] == NAMESPACE
    (rule,) = ingress["spec"]["rules"]
    assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"], "nothing goes over plain HTTP"
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["port"]["number"] == JOB_SERVER
    controller = Pod("ingress-nginx", {})
    for port in (GCS, CLIENT, JOB_SERVER, AGENT):
        opened = leave([policy], pods_of_a_run()["head"], controller, port, "Ingress")
        assert opened == (port == JOB_SERVER)
    assert not selects(policy["spec"]["podSelector"], pods_of_a_run()["cpu"].labels)


def test_policies_can_be_read_where_kubectl_is_missing() -> None:
    text = (KUBERAY / "account" / "network-policy.yaml").read_text()
    found = documents(text)
    assert {document["kind"] for document in found} == {"NetworkPolicy"}
    (default,) = [one for one in found if one["spec"]["podSelector"] == {}]
    assert set(default["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in default["spec"]
