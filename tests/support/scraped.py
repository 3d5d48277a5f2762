"""A Ray node that serves its metrics on loopback, and a reader like Prometheus."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.cluster_utils import Cluster

from tests.support.s3_server import free_ports


@dataclass(frozen=True)
class MetricsNode:
    """The addresses of a Ray node with two CPUs and of its metrics."""

    address: str
    metrics_url: str

    def scrape(self) -> list[Sample]:
        """Read all samples that the node serves."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        return [s for family in text_string_to_metric_families(text) for s in family.samples]


@contextmanager
def run_metrics_node() -> Iterator[MetricsNode]:
    """Run a node for the `with` block; it reports its metrics every second."""
    (port,) = free_ports(1)
    settings = {"metrics_report_interval_ms": 1000}
    head = {"num_cpus": 2, "include_dashboard": False, "metrics_export_port": port}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": settings})
    try:
        yield MetricsNode(cluster.address, f"http://127.0.0.1:{port}/metrics")
    finally:
        cluster.shutdown()
