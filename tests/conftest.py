"""Fixtures that several rooms share."""

from pathlib import Path

import pytest

TESTDATA = Path(__file__).parents[2] / "shared" / "testdata"


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Real photos and odd files that lie beside the project, not in it."""
    if not TESTDATA.is_dir():
        pytest.skip(f"{TESTDATA} is absent: this test needs its photos")
    return TESTDATA
