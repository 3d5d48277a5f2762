"""What detectors compute with is found out on a node of theirs."""

from dataclasses import replace

import pytest

from jobs.cluster.computation import computation_of_detectors
from jobs.cluster.placement import Placement, placement_on
from jobs.cluster.start import alive_nodes
from jobs.label.options import LabelOptions
from model.computation import computation_here
from pipeline.isolation.watchdog import Stalled
from pipeline.stages.detect import CPU_THREADS
from pipeline.storage.files import InputError

pytestmark = pytest.mark.usefixtures("local_ray")


def placement() -> Placement:
    request = LabelOptions("in", "out", model="shapes-tiny", device="cpu").machines()
    return placement_on(request, list(alive_nodes().values()), cluster=True)


@pytest.mark.parametrize(("asked", "found"), [("fp32", "fp32"), ("auto", None)])
def test_a_worker_answers_as_the_same_machine_does(asked: str, found: str | None) -> None:
    computation = computation_of_detectors(placement(), asked, None, cluster=True)
    assert computation == computation_here("cpu", asked, CPU_THREADS)
    assert found is None or computation.precision == found


def test_a_node_that_cannot_run_the_detectors_is_one_line() -> None:
    without_gpu = replace(placement(), device="cuda")
    with pytest.raises(InputError, match="a worker for detectors cannot run them: ") as raised:
        computation_of_detectors(without_gpu, "fp32", None, cluster=True)
    assert "\n" not in str(raised.value)


def test_a_node_that_never_comes_ends_the_run() -> None:
    """Seconds are few here. A run waits as long for its first node as for a result."""
    found = placement()
    pool = replace(found.layout.detectors, num_gpus=1)
    waiting = replace(found, layout=replace(found.layout, detectors=pool))
    with pytest.raises(Stalled, match=r"nothing was labelled for 2 s.*node that detectors fit on"):
        computation_of_detectors(waiting, "fp32", None, cluster=True, seconds=2.0)
