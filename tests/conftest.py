"""Fixtures that several rooms share, and which tests are of units alone.

Fixtures import what they need, so that a test of boxes waits neither for torch nor for Ray.
"""

import os
import random
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from playwright.sync_api import Browser

if not Path("/dev/nvidiactl").exists():  # Triton reads this when it is imported, for CPUs
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("DETR_BATCH_STORE_PATIENCE", "10")  # seconds, with stores that are gone
TESTDATA = Path(__file__).parents[2] / "shared" / "testdata"


def pytest_addoption(parser: pytest.Parser) -> None:
    fresh = random.SystemRandom().randrange(2**31)
    parser.addoption("--seed", type=int, default=fresh, help="of random inputs (default: fresh)")


# What is of the integration of parts: tests that start a server, a cluster, a browser or processes,
# or compute with a whole network. All others are of units: `make test-unit` runs them in a minute.
SERVICES = {"s3", "local_ray", "browser", "testdata", "old_code"}
INTEGRATION = (
    "chaos/",
    "jobs/bench/",
    "jobs/cli/test_main.py",
    "jobs/imports/",
    "jobs/output/test_damage.py",
    "jobs/output/test_explorer.py",
    "jobs/test_compact.py",
    "jobs/test_runs.py",
    "jobs/train/",
    "model/test_host_memory.py",
    "model/test_ops.py",
    "model/test_parity.py",
    "model/test_predictor.py",
    "model/test_zoo.py",
    "pipeline/isolation/",
    "pipeline/stages/test_detect.py",
    "pipeline/stages/test_memory.py",
    "pipeline/stages/test_prepare.py",
    "pipeline/stages/test_read.py",
    "pipeline/storage/test_lock.py",
    "test_rooms.py",
)
# Slow tests of these folders prove that no label is lost: CI runs them all.
PROOFS = ("chaos/", "jobs/output/")
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the integration of parts, and the slow ones that CI runs."""
    for item in items:
        file = item.path.relative_to(HERE).as_posix()
        if SERVICES & set(getattr(item, "fixturenames", ())) or file.startswith(INTEGRATION):
            item.add_marker("integration")
        if file.startswith(PROOFS) and item.get_closest_marker("slow"):
            item.add_marker("ci")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus:
        terminalreporter.write_line(f"The same random inputs again: --seed {config.option.seed}")


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> "torch.Generator":
    """Of random inputs, fresh in each run of the tests."""
    import torch

    return torch.Generator().manual_seed(request.config.option.seed)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Real photos and odd files that lie beside the project, not in it."""
    if not TESTDATA.is_dir():
        pytest.skip(f"{TESTDATA} is absent: this test needs its photos")
    return TESTDATA


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with random weights of `shapes-tiny`."""
    from tests.support.labelling import save_tiny_weights

    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """An S3 server on loopback, which this process's environment names."""
    from tests.support.s3_server import s3_server

    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def bucket(s3: None) -> str:
    """An empty prefix of its bucket: `s3://...`."""
    from tests.support.s3_server import BUCKET

    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def local_ray(s3: None) -> Iterator[None]:
    """A Ray of two CPUs for all tests; its workers can reach the S3 server."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: pages are not looked at")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
