"""Stages are placed on nodes; tests/jobs/submit/test_submit.py does it on a real cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import main
from jobs.cluster.node_labels import matches, selector
from jobs.cluster.placement import Node, placement_on
from jobs.cluster.request import ClusterRequest, cluster_request, memory_of_detector
from jobs.label.options import LabelOptions
from pipeline.dataflow import Pool, block_bytes
from pipeline.storage.files import InputError

GIB = 1 << 30
HEAD = Node({"memory": 8.0 * GIB}, {})
CPUS = Node({"CPU": 8.0, "memory": 32.0 * GIB}, {"ray.io/market-type": "on-demand"})
GPUS = Node({"CPU": 4.0, "GPU": 1.0, "memory": 16.0 * GIB}, {"ray.io/accelerator-type": "A10G"})


def request(**given: Any) -> ClusterRequest:
    return LabelOptions("in", "out", address="auto", **given).machines()


def test_cpu_stages_keep_off_nodes_whose_cpus_feed_a_gpu() -> None:
    place = placement_on(request(num_gpus="1-2"), [HEAD, CPUS, GPUS], cluster=True)
    pool = place.layout.detectors
    assert (place.device, pool.fewest, pool.most) == ("cuda", 1, 2)
    assert place.layout.nodes == {"ray.io/accelerator-type": "!in(A10G)"}
    assert place.lacks([HEAD, CPUS, GPUS]) is None
    assert "1 to 2 of 1 GPU and 1.5 GiB of memory" in place.as_text()


def test_where_there_is_no_other_node_they_share_it() -> None:
    place = placement_on(request(), [HEAD, GPUS], cluster=True)
    assert place.layout.nodes == {}
    assert place.lacks([HEAD, GPUS]) is None


def test_a_small_node_does_not_starve_many_gpus() -> None:
    small = Node({"CPU": 2.0, "memory": 8.0 * GIB}, {})
    place = placement_on(request(num_gpus="4"), [small, *[GPUS] * 4], cluster=True)
    assert place.layout.nodes == {}


def test_a_cluster_that_has_no_workers_yet_may_read_as_much_as_it_will_detect() -> None:
    assert (
        placement_on(request(device="cuda", num_gpus="8"), [HEAD], cluster=True).layout.tasks == 64
    )


def test_on_cpus_a_node_has_a_detector_for_each_core_that_its_memory_holds() -> None:
    def detectors(*nodes: Node) -> tuple[int, int]:
        pool = placement_on(request(device="cpu"), nodes, cluster=True).layout.detectors
        return pool.fewest, pool.most

    def node(cpus: float, gib: float) -> Node:
        return Node({"CPU": cpus, "memory": gib * GIB}, {})

    assert detectors(HEAD, node(8, 32), node(64, 256)) == (72, 72)
    assert detectors(node(8, 7)) == (4, 4)
    assert detectors(node(0.5, 32)) == (1, 1)
    few = replace(request(device="cpu"), images=9)
    assert placement_on(few, [node(64, 256)], cluster=True).layout.detectors.most == 3
    assert placement_on(few, [node(2, 32)], cluster=True).layout.detectors.most == 2
    bounded = request(device="cpu", max_detectors=5)
    assert placement_on(bounded, [node(64, 256)], cluster=True).layout.detectors.most == 5
    assert placement_on(bounded, [node(2, 32)], cluster=True).layout.detectors.most == 2
    # With a detector on it, half a CPU is not enough for the other stages.
    place = placement_on(request(device="cpu"), [node(0.5, 8)], cluster=True)
    assert place.lacks([node(0.5, 8)]) is not None


def test_preparers_start_on_half_of_the_cpus_at_once_if_there_are_images_for_them() -> None:
    def at_start(images: int | None, *nodes: Node) -> int:
        wanted = replace(request(device="cpu"), images=images)
        return placement_on(wanted, nodes, cluster=True).layout.fewest_preparers

    large = Node({"CPU": 64.0, "memory": 256.0 * GIB}, {})
    assert at_start(None, large, large) == 64
    assert at_start(950, large) == 10
    assert at_start(None, Node({"CPU": 2.0, "memory": 8.0 * GIB}, {})) == 1
    apart = placement_on(request(num_gpus="1-2"), [HEAD, CPUS, GPUS], cluster=True).layout
    assert apart.fewest_preparers == CPUS.resources["CPU"] // 2


def test_blocks_grow_with_the_pool_up_to_a_bound() -> None:
    def mib(detectors: int, gpus: int) -> int:
        return block_bytes(Pool(detectors, detectors, 0, gpus, 0)) >> 20

    assert [mib(detectors, gpus=0) for detectors in (1, 31, 32, 64, 256)] == [8, 8, 16, 32, 64]
    assert [mib(detectors, gpus=1) for detectors in (1, 16)] == [256, 256]


@pytest.mark.parametrize(
    ("given", "nodes", "said"),
    [
        ({"device": "cuda", "num_gpus": "2-4"}, [CPUS, GPUS], "2 detectors want 1 GPU and 1.5 GiB"),
        ({"device": "cpu"}, [Node({"CPU": 2.0, "memory": GIB}, {})], "memory each, and 0 fit"),
        ({"detect_on": "zone=moon"}, [CPUS], "on nodes with zone=moon, and 0 fit"),
        ({"prepare_on": "zone=moon"}, [CPUS], "reading and preparing want"),
        ({"device": "cuda"}, [HEAD], "1 detectors want 1 GPU"),
    ],
)
def test_what_is_lacking_is_said(given: dict[str, Any], nodes: list[Node], said: str) -> None:
    lacks = placement_on(request(**given), nodes, cluster=True).lacks(nodes)
    assert lacks is not None
    assert said in lacks


@pytest.mark.parametrize(
    ("labels", "rule", "chosen"),
    [
        ({"zone": "a"}, "a", True),
        ({"zone": "b"}, "a", False),
        ({}, "a", False),
        ({"zone": "b"}, "!a", True),
        ({}, "!a", True),
        ({"zone": "a"}, "!a", False),
        ({"zone": "b"}, "in(a, b)", True),
        ({}, "in(a,b)", False),
        ({}, "!in(a, b)", True),
        ({"zone": "b"}, "!in(a, b)", False),
    ],
)
def test_selectors_are_rays(labels: dict[str, str], rule: str, chosen: bool) -> None:
    assert matches(labels, selector(f"zone={rule}")) is chosen


def test_several_labels_are_all_wanted() -> None:
    found = selector("zone=in(a, b),ray.io/market-type=!spot")
    assert found == {"zone": "in(a, b)", "ray.io/market-type": "!spot"}
    assert not matches({"zone": "a", "ray.io/market-type": "spot"}, found)


@pytest.mark.parametrize("text", ["moon", "zone=in()", "zone=a b"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        selector(text)


@pytest.mark.parametrize("text", ["0", "4-2", "many", "-1", "1-"])
def test_what_is_no_range_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--num-gpus"):
        request(num_gpus=text)


def test_no_gpu_is_not_given_as_a_number() -> None:
    with pytest.raises(InputError, match="--num-gpus 0: at least 1 is needed; without GPUs, leave"):
        request(num_gpus="0")


def test_who_gives_a_number_of_gpus_gets_no_cpus() -> None:
    assert request(num_gpus="2").device == "cuda"
    assert request().device == "auto"
    lacks = placement_on(request(num_gpus="2"), [CPUS], cluster=True).lacks([CPUS])
    assert lacks is not None and "2 detectors want 1 GPU" in lacks
    with pytest.raises(InputError, match="--num-gpus 2 --device cpu: on CPUs"):
        request(num_gpus="2", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("given", ["--num-gpus 4", "--num-gpus 1", "--device cuda"])
def test_gpus_of_a_machine_that_has_none_are_refused(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(tmp_path), str(tmp_path / "out")]
    assert main(["label", *places, "--model", "shapes-tiny", *given.split()]) == 2
    assert f"{given}: this machine has no GPU that torch can use" in capsys.readouterr().err


def test_large_weights_of_other_detectors_get_more_memory() -> None:
    for model in ("hf:a/b", "python:a:b", "faster-rcnn"):
        assert cluster_request("auto", None, model).memory == 3 * GIB
        assert memory_of_detector(model, 400 << 20) == 3 * GIB
        assert memory_of_detector(model, (500 << 20) + GIB) == 4 * GIB
    assert memory_of_detector("detr", 9 * GIB) == memory_of_detector(None) == 3 * GIB // 2
    assert memory_of_detector("shapes-tiny") == GIB // 2
