"""Prometheus reads the figures of a run from Ray, and a failing export never costs a run."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from prometheus_client.samples import Sample

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally
from jobs.label import metrics
from jobs.label.label import label
from jobs.label.metrics import (
    COUNTERS,
    GAUGES,
    GPU_GAUGES,
    PREFIX,
    TAGS,
    RunMetrics,
    exported_names,
)
from jobs.label.options import LabelOptions
from jobs.label.planning import Run
from jobs.report.reports import report_of
from pipeline.plan import shards
from pipeline.schema import Member, Receipt, Shard
from pipeline.storage import retries
from tests.support.gpus import reading
from tests.support.scraped import MetricsNode, run_metrics_node

OUTPUT = "s3://user:secret@bucket/labels"
REPORT_SECONDS = 30  # longest wait for metrics, which Ray exports every 10 seconds
RAY_TAGS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images, and one file that is not an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "text.jpg").write_text("not an image")
    return folder


def scrape_samples_of(node: MetricsNode, output: Path) -> list[Sample]:
    """Scrape the samples of runs that write `output`."""
    found = [s for s in node.scrape() if s.name.startswith(f"ray_{PREFIX}")]
    return [s for s in found if s.labels["output"] == str(output)]


def values_by_name(samples: list[Sample]) -> dict[str, float]:
    """Map names to values; names of counters of images and runs include their own tag."""
    own = [sample.labels.get("status") or sample.labels.get("result") for sample in samples]
    names = [sample.name.removeprefix(f"ray_{PREFIX}") for sample in samples]
    return {
        f"{name}:{tag}" if tag else name: sample.value
        for name, tag, sample in zip(names, own, samples, strict=True)
    }


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.3)


def check_figures(found: dict[str, float], output: Path) -> None:
    """Check the figures of a run over `photos` that ended well."""
    report = report_of(str(output))
    assert found["images_total:ok"] == 5
    assert found["images_total:undecodable"] == 1
    assert found["runs_total:published"] == 1
    assert found["detect_seconds_total"] == pytest.approx(report["seconds_by_stage"]["detect"])
    assert found["encoded_bytes_total"] == report["encoded_bytes"]
    assert found["running"] == 0
    assert found["detectors"] == report["stage_workers"]["detect"]
    assert found["planned_images"] == 6
    assert found["planned_bytes"] == report["encoded_bytes"]
    assert found["usd"] == pytest.approx(report["usd"], rel=0.2)
    assert found["device_idle_share"] == pytest.approx(1 - report["device_use"], abs=0.1)
    assert 0 < time.time() - found["last_block_timestamp_seconds"] < 120


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_run_is_scraped_from_its_node(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels"
    options = LabelOptions(
        str(photos), str(output), model="shapes-tiny", page=False, usd_per_hour=36.0
    )
    (alive,) = [node for node in ray.nodes() if node["Alive"]]
    node = MetricsNode("", f"http://127.0.0.1:{alive['MetricsExportPort']}/metrics")
    assert label(options) == 0
    wait_until(
        lambda: values_by_name(scrape_samples_of(node, output)).get("running") == 0, REPORT_SECONDS
    )
    samples = scrape_samples_of(node, output)
    check_figures(values_by_name(samples), output)
    names = {sample.name for sample in samples}
    # No request was repeated, and a run of one block has no rate.
    unset = {f"ray_{PREFIX}{name}" for name in ("storage_retries_total", "images_per_second")}
    unset |= {f"ray_{PREFIX}{name}" for name in ("watt_hours", *GPU_GAUGES)}  # the run is on CPUs
    assert names == exported_names() - unset
    assert len({sample.labels["run"] for sample in samples}) == 1
    for sample in samples:
        tags = {tag for tag in sample.labels if not tag.startswith("otel_")}
        assert tags - RAY_TAGS <= {*TAGS, "status", "result"}


@pytest.mark.slow
def test_a_node_serves_the_metrics_of_a_command_that_has_ended(
    photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    command = [sys.executable, "-m", "jobs.cli", "label", str(photos), str(output), "--no-page"]
    command += ["--model", "shapes-tiny", "--usd-per-hour", "36"]
    seen: list[dict[str, float]] = []
    with run_metrics_node() as node:
        process = subprocess.Popen([*command, "--address", node.address])
        while process.poll() is None:
            seen.append(values_by_name(scrape_samples_of(node, output)))
            time.sleep(0.3)
        assert process.returncode == 0
        ended = values_by_name(scrape_samples_of(node, output))
        check_figures(ended, output)
        wait_until(
            lambda: "running" not in values_by_name(scrape_samples_of(node, output)), REPORT_SECONDS
        )
        assert values_by_name(scrape_samples_of(node, output))["runs_total:published"] == 1
    under_way = [found for found in seen if found.get("running") == 1]
    assert {found["device_idle_share"] for found in under_way} >= {1.0}
    assert 0 < under_way[0]["usd"] < ended["usd"]


class Recorder:
    """Replaces Ray's counters and gauges, and records their values."""

    recorded: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
        assert description
        self.name, self.tag_keys = name, set(tag_keys)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self._record(value + self.recorded.get(self._key(tags), 0), tags)

    def set(self, value: float | None, tags: dict[str, str]) -> None:
        if value is not None:
            self._record(value, tags)

    def _record(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.tag_keys
        self.recorded[self._key(tags)] = value

    def _key(self, tags: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.name.removeprefix(PREFIX), tuple(sorted(tags.items()))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    """The values that Ray was given, by name and tags."""
    Recorder.recorded = {}
    for name in ("Counter", "Gauge"):
        monkeypatch.setattr(metrics, name, Recorder)
    return Recorder.recorded


def make_run(kind: str = "files", **rates: Any) -> tuple[Rates, Run, Tally, NodeMeter]:
    members = (Member("a", "e", 700), Member("b", "e", 300))
    return (
        Rates(**rates),
        Run(
            "20260101T000000Z-aaaaaa",
            shards.write_shards([shards.table_of_shards([Shard("s", kind, members)])]),
        ),
        Tally(startup=Startup(imports=100.0)),
        NodeMeter(lambda: [{"Alive": True, "Resources": {"CPU": 2}}], time.time() - 3600),
    )


def receipt(images: int = 40, **other: Any) -> Receipt:
    return Receipt("a", ("s",), images=images, detections=9, finished_at=time.time(), **other)


def test_receipts_become_counters_and_secrets_do_not(
    recorded: dict[Any, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, run, tally, nodes = make_run(usd_per_hour=7.2)
    with nodes, RunMetrics(OUTPUT, run, tally, nodes, rates, detectors=2):
        tally.add(receipt(failed={"undecodable": 10}, detect_seconds=20.0, retries=3))
        tally.add(receipt(failed={"undecodable": 1, "timed_out": 2}, encoded_bytes=5))
        monkeypatch.setattr(
            retries, "repeated", retries.repeated + 4
        )  # requests that this process repeated
    assert "secret" not in str(recorded)
    assert {dict(tags)["output"] for _, tags in recorded} == {"s3://bucket/labels"}
    found = {
        (name, dict(tags).get("status") or dict(tags).get("result")): value
        for (name, tags), value in recorded.items()
    }
    assert found[("images", "ok")] == 67
    assert found[("images", "undecodable")] == 11
    assert found[("images", "timed_out")] == 2
    assert found[("storage_retries", None)] == 7
    assert found[("device_idle_share", None)] == pytest.approx(1 - 20 / 200, abs=0.01)
    assert found[("usd", None)] == pytest.approx(7.2, rel=0.01)
    assert found[("planned_bytes", None)] == 1000
    assert found[("planned_images", None)] == 2
    assert found[("runs", "published")] == 1
    assert {name for name, _ in found} <= {*COUNTERS, *GAUGES}


def test_figures_of_gpus_are_exported_by_gpu(recorded: dict[Any, float]) -> None:
    rates, run, tally, nodes = make_run()
    with nodes, RunMetrics(OUTPUT, run, tally, nodes, rates, detectors=2):
        for device, watts in (("GPU-a", 300.0), ("GPU-b", 200.0), ("GPU-a", 250.0)):
            tally.add(receipt(gpu=(reading("d" + device, device, watts=watts),)))
    found = {(name, dict(tags).get("gpu")): value for (name, tags), value in recorded.items()}
    assert found[("gpu_watts", "GPU-a")] == 250.0 and found[("gpu_watts", "GPU-b")] == 200.0
    assert found[("gpu_use", "GPU-a")] == 0.5
    assert found[("watt_hours", None)] == pytest.approx(2.0)


def test_unknown_figures_are_not_exported(recorded: dict[Any, float]) -> None:
    rates, run, tally, nodes = make_run(kind="tar")
    with (
        pytest.raises(OSError, match="gone"),
        nodes,
        RunMetrics(OUTPUT, run, tally, nodes, rates, 1),
    ):
        raise OSError("gone")
    found = {name: (value, dict(tags)) for (name, tags), value in recorded.items()}
    assert not {"usd", "images_per_second", "planned_images", "images"} & set(found)
    assert found["runs"][1]["result"] == "failed"
    assert found["running"][0] == 0


def test_a_run_that_publishes_nothing_does_not_count_as_published(
    recorded: dict[Any, float],
) -> None:
    rates, run, tally, nodes = make_run()
    with nodes, RunMetrics(OUTPUT, run, tally, nodes, rates, 1) as exported:
        exported.keep()
    results = {dict(tags)["result"] for name, tags in recorded if name == "runs"}
    assert results == {"ended_by_budget"}


def test_metrics_that_fail_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no metrics today")

    warnings: list[str] = []
    monkeypatch.setattr(
        metrics.log, "warning", lambda text, *values: warnings.append(text % values)
    )
    for name in ("Counter", "Gauge"):
        monkeypatch.setattr(metrics, name, refuse)
    rates, run, tally, nodes = make_run()
    with nodes, RunMetrics(OUTPUT, run, tally, nodes, rates, 1):
        tally.add(receipt())
        tally.add(receipt())
    assert tally.images == 80
    assert warnings == [f"some metrics of {run.run_id} are not exported: no metrics today"]


def test_a_cluster_that_does_not_answer_does_not_delay_a_run(
    recorded: dict[Any, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "UPDATE_SECONDS", 0.2)
    answered = threading.Event()
    rates, run, tally, nodes = make_run()
    with RunMetrics(OUTPUT, run, tally, nodes, rates, 1):
        monkeypatch.setattr(nodes, "read", answered.wait)
        time.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    answered.set()
