"""Fixtures that several rooms share, and the marks that divide unit tests from others.

Fixtures import what they need, so that a test of boxes waits neither for torch nor for Ray.
"""

import os
import random
import shutil
import sys
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from tests.support.daily import DailySlice

if TYPE_CHECKING:
    import torch
    from playwright.sync_api import Browser

if not Path("/dev/nvidiactl").exists():  # Triton reads this at import, and then runs on CPUs
    os.environ["TRITON_INTERPRET"] = "1"
# Several processes share the cores, and by default torch's threads spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DETR_BATCH_STORE_PATIENCE", "10")  # seconds to wait for stores that are gone
# Tests start hundreds of processes, which would compile all files of the project each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
TESTDATA = Path(__file__).parents[2] / "shared" / "testdata"


def pytest_addoption(parser: pytest.Parser) -> None:
    fresh = random.SystemRandom().randrange(2**31)
    parser.addoption("--seed", type=int, default=fresh, help="of random inputs (default: fresh)")
    parser.addoption(
        "--seeds",
        type=int,
        default=0,
        help="run only the tests of random inputs, each with this many seeds, from --seed on",
    )
    parser.addoption(
        "--minutes",
        type=float,
        help="run the tests in the order of the day, and start none after so many minutes",
    )


def pytest_configure(config: pytest.Config) -> None:
    # By default Hypothesis fails a test whose example takes long, which depends on other work.
    hypothesis.settings.register_profile("without deadline", deadline=None)
    hypothesis.settings.load_profile("without deadline")
    if hasattr(config, "workerinput"):
        config.option.seed = config.workerinput["seed"]
    if config.option.minutes is not None:
        config.pluginmanager.register(DailySlice(config.option.minutes))


def draws_examples(function: object) -> bool:
    """Whether Hypothesis draws the inputs of a test."""
    return getattr(function, "is_hypothesis_test", False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the tests of random inputs with each of `--seeds`."""
    first, count = metafunc.config.option.seed, metafunc.config.option.seeds
    if not count:
        return
    if draws_examples(metafunc.function):
        metafunc.fixturenames.append("seed")
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize(
            "seed", range(first, first + count), indirect=True, ids="seed={}".format
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let Hypothesis draw from the seed, so that a failure can be repeated."""
    if isinstance(item, pytest.Function) and draws_examples(item.function):
        hypothesis.seed(seed_of(item))(item.function)


def seed_of(item: pytest.Item) -> int:
    return int(parameters_of(item).get("seed", item.config.option.seed))


def parameters_of(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else dict(callspec.params)


# Integration tests start a server, a cluster, a browser or processes, run whole commands over an
# OUTPUT, or compute with a whole network or in Triton's interpreter. All others are unit tests,
# which `make test-unit` runs in a minute.
SERVICES = {"s3", "local_ray", "browser", "testdata", "old_code"}
INTEGRATION = (
    "chaos/",
    "infra/test_kuberay.py",
    "infra/test_monitoring.py",
    "infra/test_network_policy.py",
    "infra/test_nightly.py",
    "jobs/accounting/test_timeline.py",
    "jobs/bench/",
    "jobs/cli/test_main.py",
    "jobs/cluster/test_private_ray.py",
    "jobs/cluster/test_ray_internals.py",
    "jobs/coco/test_bounded_file.py",
    "jobs/compare/",
    "jobs/demo/",
    "jobs/evaluate/",
    "jobs/exports/",
    "jobs/imports/",
    "jobs/label/canaries/",
    "jobs/label/notify/test_label_tells.py",
    "jobs/label/notify/test_notifier.py",
    "jobs/label/notify/test_post.py",
    "jobs/label/test_budget.py",
    "jobs/label/test_parquet_columns.py",
    "jobs/label/test_planning.py",
    "jobs/label/test_relabel.py",
    "jobs/label/test_secrets.py",
    "jobs/label/test_tile_options.py",
    "jobs/output/test_clocks.py",
    "jobs/output/test_damage.py",
    "jobs/output/test_explorer.py",
    "jobs/output/test_links.py",
    "jobs/output/test_protected_files.py",
    "jobs/output/test_user_errors.py",
    "jobs/report/test_imported.py",
    "jobs/report/test_pictures.py",
    "jobs/serve/",
    "jobs/submit/",
    "jobs/test_compact.py",
    "jobs/test_compact_damage.py",
    "jobs/test_compact_equal_names.py",
    "jobs/test_query",
    "jobs/test_runs.py",
    "jobs/train/",
    "model/test_checkpoint.py",
    "model/test_fallback.py",
    "model/test_faster_rcnn.py",
    "model/test_from_hub.py",
    "model/test_fused_pyramid.py",
    "model/test_half_corners.py",
    "model/test_host_memory.py",
    "model/test_int8.py",
    "model/test_linear_norm.py",
    "model/test_ops.py",
    "model/test_parity.py",
    "model/test_pointwise.py",
    "model/test_predictor.py",
    "model/test_resample.py",
    "model/test_trunk.py",
    "model/test_zoo.py",
    "pipeline/formats/test_read.py",
    "pipeline/formats/test_web_bodies.py",
    "pipeline/isolation/",
    "pipeline/plan/test_bad_addresses.py",
    "pipeline/plan/test_exact_addresses.py",
    "pipeline/plan/test_footers.py",
    "pipeline/plan/test_hub.py",
    "pipeline/plan/test_links.py",
    "pipeline/plan/test_list_names.py",
    "pipeline/plan/test_listing.py",
    "pipeline/plan/test_lists.py",
    "pipeline/plan/test_plan.py",
    "pipeline/plan/test_unavailable.py",
    "pipeline/plan/test_walk.py",
    "pipeline/stages/test_bits.py",
    "pipeline/stages/test_decode.py",
    "pipeline/stages/test_decode_on_device.py",
    "pipeline/stages/test_detect.py",
    "pipeline/stages/test_detectors.py",
    "pipeline/stages/test_enlarge.py",
    "pipeline/stages/test_memory.py",
    "pipeline/stages/test_prepare.py",
    "pipeline/stages/test_read.py",
    "pipeline/stages/test_tiles.py",
    "pipeline/storage/test_access.py",
    "pipeline/storage/test_environment.py",
    "pipeline/storage/test_image_hosts.py",
    "pipeline/storage/test_limits.py",
    "pipeline/storage/test_lock.py",
    "pipeline/storage/test_lock_handover.py",
    "pipeline/test_local.py",
    "pipeline/test_public_reports.py",
    "test_architecture.py",
    "test_seeds.py",
)
# Slow tests of these files measure times or memory, so they fail if other work runs beside them.
MEASURES = (
    "jobs/bench/",
    "jobs/exports/test_memory.py",
    "jobs/label/test_scale.py",
    "jobs/test_query.py",
    "model/test_ops.py",
    "pipeline/formats/test_read.py",
    "pipeline/stages/test_memory.py",
)
# Fast tests of these files need `local_ray`, which takes a quarter of a minute to start.
WITH_RAY = (
    "jobs/cluster/test_computation.py",
    "jobs/cluster/test_ray_internals.py",
    "jobs/label/",
    "pipeline/isolation/test_watchdog.py",
)
# These take longest. They come first, so that all processes end at about the same time.
FIRST = (
    *WITH_RAY,
    "jobs/serve/",
    "model/test_predictor.py",
    "model/test_trunk.py",
    "pipeline/isolation/",
    "pipeline/test_local.py",
    "jobs/output/test_damage.py",
    "test_",
)
HERE = Path(__file__).parent


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let all processes draw from one seed, which a failure prints."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "OneRay | None":
    return OneRay(config, log) if config.option.dist == "loadfile" else None


class OneRay(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """One file after the other for each process; those that need Ray are for the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "ray" if file.removeprefix("tests/").startswith(WITH_RAY) else file


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Take the name of the test out of the environment.

    A child that opens stores is started anew when the environment changes (isolation/child.py), so
    that each test would start one.
    """
    del os.environ["PYTEST_CURRENT_TEST"]
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark integration tests, and the slow tests that measure times or memory."""
    if config.option.seeds:
        items[:] = [item for item in items if "seed" in parameters_of(item)]
    items.sort(key=lambda item: not item.path.relative_to(HERE).as_posix().startswith(FIRST))
    for item in items:
        file = item.path.relative_to(HERE).as_posix()
        if SERVICES & set(getattr(item, "fixturenames", ())) or file.startswith(INTEGRATION):
            item.add_marker("integration")
        if file.startswith(MEASURES) and item.get_closest_marker("slow"):
            item.add_marker("measures")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus:
        one = "NUMBER, as in seed=NUMBER" if config.option.seeds else config.option.seed
        terminalreporter.write_line(f"The same random inputs again: --seed {one}")


@pytest.fixture(scope="session", autouse=True)
def brief_settling() -> Iterator[float]:
    """A lock is read again at once, not after a fifth of a second in each command of each test.

    The pause is for two commands that write the lock in the same instant. Tests of such commands
    use `settling`. Returns the pause that users have.
    """
    from pipeline.storage import lock

    with pytest.MonkeyPatch.context() as patch:
        seconds = lock.SETTLE_SECONDS
        patch.setattr(lock, "SETTLE_SECONDS", 0.01)
        yield seconds


@pytest.fixture
def settling(brief_settling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is read again after the pause that it has for users."""
    monkeypatch.setattr("pipeline.storage.lock.SETTLE_SECONDS", brief_settling)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of random inputs, which is fresh in each run of the tests."""
    return seed_of(request.node)


@pytest.fixture
def generator(seed: int) -> "torch.Generator":
    """A source of random inputs; modules that a test creates draw weights from the same seed."""
    import torch

    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real photos and odd files, which lies beside the project, not in it."""
    if not TESTDATA.is_dir():
        pytest.skip(f"{TESTDATA} is absent: this test needs its photos")
    return TESTDATA


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a file with random weights of `shapes-tiny`."""
    from tests.support.labelling import save_tiny_weights

    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """An S3 server on loopback, to which the environment of this process points."""
    from tests.support.s3_server import s3_server

    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def bucket(s3: None) -> str:
    """The URL of an empty prefix in the bucket of the S3 server: `s3://...`."""
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
