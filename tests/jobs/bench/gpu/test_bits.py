"""Operations whose bits for an image differ between batches, or processes, are found."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.bench.gpu.batches import Case
from jobs.bench.gpu.bits import FIRST, Answer, Worker, judge_answers, measure_case
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.growth import Function, Growth, learn_growth
from jobs.bench.gpu.lockstep import Operations, check_operations, sum_bits

IMAGES = torch.rand(16, 5, 8, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("test_bits::add_mean", mutates_args=())
def add_mean(x: Tensor) -> Tensor:
    """Adds the mean of all images, so that a NaN in one of them reaches all."""
    return x + x.mean(0, keepdim=True)


@torch.library.custom_op("test_bits::scale_by_count", mutates_args=())
def scale_by_count(x: Tensor) -> Tensor:
    """Depends on the batch size, like a library that chooses its algorithm by that size."""
    return x * (1 + 1e-6 * len(x))


@torch.library.custom_op("test_bits::shift_first_", mutates_args=("x",))
def shift_first_(x: Tensor, by: Tensor) -> None:
    """Changes only the first image."""
    x[0] += by


def check(function: Function, count: int = 4) -> Operations:
    return check_operations(function, count, learn_growth(function))


def failed_checks(found: Operations) -> dict[str, list[str]]:
    return {failing.name: failing.checks for failing in found.failing}


def test_an_operation_that_mixes_images_is_named() -> None:
    found = check(lambda count: add_mean(IMAGES[:count] * 2) + 1)
    (failing,) = found.failing
    assert failing.name == "test_bits.add_mean.default"
    assert failing.shapes == "(1, 5, 8)"
    assert {"alone", "beside NaN", "beside Inf"} <= set(failing.checks)
    assert failing.difference is None  # the image became NaN, so there is no difference
    assert found.checked == 3
    assert found.departed is None


def test_an_operation_that_depends_on_the_count_is_named() -> None:
    found = check(lambda count: scale_by_count(IMAGES[:count]))
    assert failed_checks(found) == {"test_bits.scale_by_count.default": ["alone"]}
    difference = found.failing[0].difference
    assert difference is not None
    assert 0 < difference < 1e-5


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_clean_operations_pass(count: int) -> None:
    shared = torch.rand(5, 8)

    def function(images: int) -> Tensor:
        x = torch.where(IMAGES[:images] > 0.5, IMAGES[:images], shared)
        return torch.cat((x * shared, x.flip(1)), dim=2)

    found = check(function, count)
    assert found.failing == []
    assert found.unclear == []
    assert found.checked == (5 if count > 1 else 0)
    assert len(found.names) == len(found.digests) == 5
    # Digests are those of the first image, so a batch of any size gives the same.
    assert found.digests == check(function, 2).digests


def test_checks_of_an_operation_that_writes_do_not_change_the_computation() -> None:
    results = []

    def function(count: int) -> None:
        x = IMAGES[:count].clone()
        shift_first_(x, torch.ones(5, 8))
        results.append(x.mul_(2.0).relu_())

    function(4)
    found = check(function)
    assert torch.equal(results[0], results[-1])
    assert failed_checks(found) == {"test_bits.shift_first_.default": ["alone", "position"]}
    assert found.names[1:] == ["aten.mul_.Tensor", "aten.relu_.default"]


def test_flattened_images_are_found() -> None:
    weight = torch.rand(8, 3)

    def function(count: int) -> Tensor:
        rows = IMAGES[:count].reshape(-1, 8)  # (B * 5, 8)
        return (rows @ weight).view(count, 5, 3).transpose(0, 1).sigmoid()

    product, sigmoid = learn_growth(function)
    assert product.arguments == (Growth(0, 5), None)
    assert product.results == (Growth(0, 5),)
    assert product.arguments_at(7) == ((35, 8), (8, 3))
    assert sigmoid.arguments == (Growth(1, 1),)


def test_integer_arguments_grow_and_unclear_operations_are_listed() -> None:
    def function(count: int) -> Tensor:
        x = torch.repeat_interleave(IMAGES[:1], count, dim=0)
        return torch.outer(x[:, 0, 0], x[:, 0, 0])

    repeated, outer = learn_growth(function)
    assert Growth(0, 1) in repeated.arguments
    assert not outer.clear
    assert check(function).unclear == ["aten.outer.default"]


def test_calls_after_an_unexpected_call_are_not_checked() -> None:
    def function(count: int) -> Tensor:
        x = IMAGES[:count] * 2
        return add_mean(x.exp() if count == 4 else x.sin())

    assert failed_checks(check(function, 2))
    found = check(function, 4)
    assert found.departed == "call 1: aten.exp.default"
    assert found.failing == []
    assert found.names == ["aten.mul.Tensor"]


def test_a_sum_of_bits_differs_by_position_and_by_sign() -> None:
    tensors = [
        [torch.tensor([1.0, 2.0])],
        [torch.tensor([2.0, 1.0])],
        [torch.tensor([0.0, 1.0])],
        [torch.tensor([-0.0, 1.0])],
        [torch.tensor([1.0]), torch.tensor([2.0])],
        [torch.tensor([float("nan"), 1.0])],
    ]
    assert len({int(sum_bits(each)) for each in tensors}) == len(tensors)
    assert int(sum_bits(tensors[-1])) == int(sum_bits(tensors[-1]))


@pytest.fixture(scope="module")
def answer() -> Answer:
    """The answer of a process that measured the packaged model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, threads of these small operations mostly wait
    case = Case("shapes-tiny", "fp32", padded=True)
    found = measure_case(case, "cpu", tiny=True, thorough=True)
    torch.set_num_threads(threads)
    as_read: Answer = json.loads(json.dumps(found))
    return as_read


@pytest.mark.slow
def test_the_packaged_model_is_measured(answer: Answer) -> None:
    assert answer["counts"] == [1, 2]
    found = answer["operations"]["2"]
    assert found["departed"] is None
    assert found["unclear"] == []
    assert found["checked"] > 300
    # Sums of libraries may be rounded differently, but no image may depend on another image.
    checks = {check for failing in found["failing"] for check in failing["checks"]}
    assert not checks & {"beside NaN", "beside Inf", "repeated"}
    assert answer["detector"]["network"]["same"]["1"] == {"random": True, "NaN": True, "Inf": True}
    assert len(answer["digests"]["2"].split()) == len(answer["names"])


def test_processes_that_differ_are_reported_with_the_first_operation(answer: Answer) -> None:
    clean = answer | {
        "operations": {},
        "detector": {"network": {"same": {}, "digests": {"2": "a"}}},
    }
    same = judge_answers({FIRST: clean, "second": clean})
    assert same["same_bits"]
    assert same["summary"] == "the same bits everywhere"
    digests = answer["digests"]["2"].split()
    digests[7] = digests[9] = "00000000"
    other = clean | {"digests": answer["digests"] | {"2": " ".join(digests)}}
    verdict = judge_answers({FIRST: clean, "second": other})
    assert not verdict["same_bits"]
    first_difference = f"call 7: {answer['names'][7]}"
    assert verdict["processes"]["second"]["operations"] == {"2": first_difference}
    assert verdict["summary"] == f"process second differs, at first in {first_difference}"
    with pytest.raises(RuntimeError, match="second process: no memory"):
        judge_answers({FIRST: clean, "second": {"failed": "no memory"}})


def make_worker(folder: Path, code: str, seconds: float) -> Worker:
    context = Context("bits", folder, "cpu", tiny=True, deadline=time.monotonic() + seconds)
    worker = Worker(context, {}, thorough=False)
    worker.command = [sys.executable, "-c", code]
    return worker


def test_a_process_that_ended_is_started_again(tmp_path: Path) -> None:
    code = "import json; print('a warning'); print(json.dumps({'case': input()}))"
    worker = make_worker(tmp_path, code, 30)
    for case in ("one", "two"):
        worker.ask(case)
        assert worker.read_answer() == {"case": case}
        assert worker.read_answer() == {"failed": "its process ended with 0"}
    worker.close()
    assert worker.process is None


def test_a_process_is_stopped_at_the_deadline(tmp_path: Path) -> None:
    worker = make_worker(tmp_path, "import time; time.sleep(60)", 0.3)
    began = time.monotonic()
    worker.ask("one")
    assert worker.read_answer() == {"failed": "its process ended with -9"}
    worker.close()
    assert time.monotonic() - began < 10
