"""The short form of `make chaos`: a few faults, in a Ray cluster of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import Lab
from tests.chaos.scenarios import Case, short_cases


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(Path(tmp_path_factory.mktemp("chaos")), images=48).cluster() as lab:
        yield lab


@pytest.mark.slow
@pytest.mark.parametrize("case", short_cases(), ids=lambda case: case.scenario.__name__)
def test_nothing_is_lost_and_nothing_twice(lab: Lab, case: Case) -> None:
    outcome = case.scenario(lab, case.short)
    assert outcome.injected >= case.short
    assert (outcome.lost, outcome.twice, outcome.differing) == (0, 0, 0)
