"""One engine for the tests of the endpoint: it takes seconds to start."""

from collections.abc import Iterator

import pytest

from jobs.serve.engine.engine import Engine
from jobs.serve.settings.settings import ApiSettings
from tests.support.serving import serving, shapes_engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    return shapes_engine()


@pytest.fixture(scope="session")
def endpoint(engine: Engine) -> Iterator[str]:
    """The address of an endpoint that needs no key."""
    with serving(ApiSettings(usd_per_1000_images=0.047), engine) as address:
        yield address
