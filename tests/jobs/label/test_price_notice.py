"""Prices of machines that are plainly not those of the run are said."""

import pytest

from jobs.accounting.node_hours import Rates
from jobs.accounting.prices import machine
from jobs.cluster.placement import ACCELERATOR, Node
from jobs.label.price_notice import price_notice


def node(cpus: float, gpus: float = 0, kind: str = "") -> Node:
    return Node({"CPU": cpus, "GPU": gpus}, {ACCELERATOR: kind} if kind else {})


@pytest.mark.parametrize(
    ("names", "nodes", "device", "said"),
    [
        (("g6.xlarge",), [node(2)], "cpu", "no node has a GPU, and g6.xlarge has 1 x L4"),
        (("g6.xlarge",), [node(4, 1, "A10G")], "cuda", "a node has 1 x A10G, and g6.xlarge"),
        (("g6.xlarge",), [node(4, 4, "L4")], "cuda", "a node has 4 x L4, and g6.xlarge has 1 x L4"),
        (("g6e.12xlarge",), [node(48, 4, "L4")], "cuda", "and g6e.12xlarge has 4 x L40S"),
        (("g6.xlarge",), [node(32, 1, "L4")], "cuda", "a node has 32 CPUs, and g6.xlarge 4"),
        (("m5d.2xlarge",), [node(2)], "cpu", "a node has 2 CPUs, and m5d.2xlarge 8"),
        (("m5d.2xlarge",), [node(8, 1)], "cuda", "a node has 1 GPU, and m5d.2xlarge has none"),
        (("g6.xlarge",), [node(3.5, 1, "L4")], "cuda", ""),  # a pod
        (("g6.xlarge", "m5d.2xlarge"), [node(4, 1, "L4"), node(7)], "cuda", ""),
        (("g6.xlarge", "m5d.2xlarge"), [node(7)], "cuda", ""),  # its GPU nodes are yet to start
        (("m5d.2xlarge",), [node(8)], "cpu", ""),
        ((), [node(2)], "cpu", ""),
    ],
)
def test_other_machines_are_named(
    names: tuple[str, ...], nodes: list[Node], device: str, said: str
) -> None:
    gpu, cpu = (*map(machine, names), None, None)[:2]
    found = price_notice(Rates(gpu=gpu, cpu=cpu), nodes, device)
    assert said in found if said else found == ""


def test_the_gpu_of_this_machine_is_known_by_its_own_name() -> None:
    rates, nodes = Rates(gpu=machine("g6.xlarge")), [node(4, 1)]
    assert price_notice(rates, nodes, "cuda", "NVIDIA L4") == ""
    assert "1 x NVIDIA A10G" in price_notice(rates, nodes, "cuda", "NVIDIA A10G")


def test_the_report_says_it_beside_the_price() -> None:
    cost = Rates(gpu=machine("g6.xlarge"), note="no node has a GPU").bill({"cpu": 1.0}, 1.0)
    assert cost is not None and cost["basis"].endswith("another machine: no node has a GPU")
