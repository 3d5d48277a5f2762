"""How many detectors batches have for themselves, and requests do not get."""

import math
from typing import Any

import pytest

from jobs.cluster.placement import Node, Placement, placement_on
from jobs.serve.batches.run import label_words
from jobs.serve.batches.settings import batch_settings
from jobs.serve.settings.options import ServeOptions
from jobs.serve.settings.sharing import detectors_that_fit, share_detectors
from pipeline.storage.errors import InputError

GIB = 1 << 30
CPUS = Node({"CPU": 8.0, "memory": 64.0 * GIB}, {})
GPUS = Node({"CPU": 32.0, "GPU": 8.0, "memory": 256.0 * GIB}, {})


def options_of(node: Node, address: str | None, **given: object) -> ServeOptions:
    device = "cuda" if "GPU" in node.resources else "cpu"
    all_given: dict[str, Any]
    all_given = {"model": "shapes-tiny", "device": device, "batches": "b", **given}
    return ServeOptions(**all_given, address=address)


def shares(node: Node, address: str | None = None, room: float = -1, **given: object) -> object:
    """The most detectors of requests, and those of batches."""
    options = options_of(node, address, **given)
    placement = placement_on(options.machines(), [node], cluster=bool(address))
    fitting = room if room >= 0 else detectors_that_fit(placement, [node], False)
    found, share = share_detectors(options, placement, fitting)
    return _most(found), share.detectors


def _most(placement: Placement) -> int:
    pool = placement.layout.detectors
    assert 1 <= pool.fewest <= pool.most
    return pool.most


def test_on_cpus_of_one_machine_nothing_is_reserved_by_default() -> None:
    assert shares(CPUS) == (8, None)
    assert shares(CPUS, batch_detectors=3) == (5, 3)


def test_a_cluster_reserves_a_quarter() -> None:
    assert shares(CPUS, "auto") == (6, 2)
    assert shares(CPUS, "auto", batch_detectors=1) == (7, 1)
    assert shares(CPUS, "auto", batches=None) == (8, None)
    assert shares(GPUS, "auto", num_gpus="1-8") == (6, 2)
    assert shares(GPUS, "auto", num_gpus="4") == (4, 1)


def test_requests_keep_what_they_need_at_least() -> None:
    one = Node({"CPU": 1.0, "memory": 8.0 * GIB}, {})
    assert shares(one, "auto") == (1, None)
    assert shares(GPUS, "auto", num_gpus="8") == (8, None)
    cases: tuple[tuple[Node, dict[str, Any]], ...]
    cases = (one, {}), (GPUS, {"num_gpus": "8"}), (CPUS, {})
    for node, given in cases:
        with pytest.raises(InputError, match=r"--batch-detectors 8: .* fit, and requests need"):
            shares(node, "auto", batch_detectors=8, **given)


def test_an_autoscaler_makes_nodes_for_both() -> None:
    assert shares(GPUS, "auto", math.inf, num_gpus="1-8", batch_detectors=2) == (8, 2)


@pytest.mark.parametrize(("named", "last"), [("", "6,7"), ("a,b,c,d,e,f,g,h", "g,h")])
def test_gpus_of_one_machine_go_to_one_of_both(
    named: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    options = options_of(GPUS, None, num_gpus="6", batch_detectors=2)
    placement = placement_on(options.machines(), [GPUS], cluster=False)
    _, share = share_detectors(options, placement, detectors_that_fit(placement, [GPUS], False))
    settings = batch_settings(options, share)
    assert settings.share.gpus == last
    words = label_words(settings.label)
    assert words[words.index("--num-gpus") + 1] == "2" and "--max-detectors" not in words


def test_the_run_of_a_batch_has_no_more_detectors_than_its_share() -> None:
    options = options_of(CPUS, None, batch_detectors=3)
    placement = placement_on(options.machines(), [CPUS], cluster=False)
    _, share = share_detectors(options, placement, 8)
    words = label_words(batch_settings(options, share).label)
    assert words[words.index("--max-detectors") + 1] == "3"
