"""The step `flow`: its photos, and the figures that it reports of a run."""

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs.bench.gpu import decoding, flow, labelling
from jobs.bench.gpu.context import Absent, Context, Wrong
from jobs.bench.gpu.journal import LEFT_OUT
from jobs.bench.gpu.labelling import Sample, Watch, kind_of
from jobs.bench.gpu.photos import encode, write_photos
from jobs.bench.gpu.preparing import measure_preparing
from model.resize import ResizeRule


@pytest.mark.slow
def test_photos_are_as_large_as_those_of_cameras(tmp_path: Path) -> None:
    write_photos(tmp_path / "large", [(800, 1066)] * 40)
    files = list((tmp_path / "large").iterdir())
    assert len(files) == 40
    assert 8 <= len({file.read_bytes() for file in files}) <= 16
    for file in files:
        assert 150e3 <= file.stat().st_size <= 250e3
    write_photos(tmp_path / "like COCO", [(480, 640)] * 4, distinct=4)
    for file in (tmp_path / "like COCO").iterdir():
        assert 60e3 <= file.stat().st_size <= 120e3


def test_photos_of_a_mix_have_their_sizes_in_their_order(tmp_path: Path) -> None:
    sizes = [(60, 80), (90, 64), (60, 80), (33, 47), *[(60, 80)] * 16]
    write_photos(tmp_path / "mix", sizes, distinct=4)
    contents = []
    for file, (height, width) in zip(sorted((tmp_path / "mix").iterdir()), sizes, strict=True):
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            assert (image.format, image.size) == ("JPEG", (width, height))
            contents.append((image.size, image.tobytes()))
    distinct = Counter(size for size, _ in set(contents))
    assert distinct[80, 60] == 4 and distinct[64, 90] == distinct[47, 33] == 1


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::MapWorker(MapBatches(Detector)).submit", labelling.DETECTORS),
        ("ray::MapWorker(MapBatches(Detector)).__init__", labelling.DETECTORS),
        ("ray::MapWorker(MapBatches(Preparer)).submit", labelling.PREPARERS),
        (
            "/venv/bin/python -P -m pipeline.isolation.child 40 6442 pipeline.stages.decode",
            labelling.PREPARERS,
        ),
        (
            "/venv/bin/python -P -m pipeline.isolation.child 40 6442 pipeline.formats.read",
            labelling.OTHERS,
        ),
        ("ray::MapBatches(read_work)", labelling.OTHERS),
        ("ray::IDLE", labelling.OTHERS),
        ("ray::DashboardAgent", labelling.RAY),
        ("/site/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", labelling.RAY),
        ("", labelling.RAY),
    ],
)
def test_processes_are_recognised_by_their_titles(title: str, kind: str) -> None:
    assert kind_of(title) == kind


def test_cpu_seconds_are_those_of_all_processes_that_were_seen(tmp_path: Path) -> None:
    """The seconds of a process that has ended still count."""
    code = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    watch = Watch(os.getpid(), tmp_path, "cpu")
    watch.look()
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        deadline = time.monotonic() + 30
        while watch.cpu_seconds((0, -1))[labelling.RAY] < 0.2 and time.monotonic() < deadline:
            time.sleep(0.05)
            watch.look()
        child.kill()
    watch.look()
    seconds = watch.cpu_seconds((0, -1))
    assert seconds[labelling.RAY] >= 0.2  # a process without a title counts as a server of Ray
    assert seconds[labelling.DETECTORS] == 0.0
    assert watch.steady() is None


def test_cores_in_use_are_counted_between_the_first_block_and_the_last(tmp_path: Path) -> None:
    watch = Watch(own := os.getpid(), tmp_path, "cpu")
    for second, blocks in enumerate([0, 0, 1, 1, 3, 3, 0]):
        use = None if second == 3 else 0.25 * second
        watch.samples.append(Sample(second, {own: 2.0 * second}, blocks, use))
    figures = flow.describe_steady(watch)
    assert figures["cores_steady"][labelling.DRIVER] == 2.0
    assert figures["device_share_steady_nvml"] == 0.5
    assert watch.cpu_seconds()[labelling.DRIVER] == 12.0


def test_photos_that_the_detector_enlarges_cross_small_and_cost_less(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", [(480, 640), (800, 1066)], distinct=1)
    contents = [file.read_bytes() for file in (tmp_path / "photos").iterdir()]
    costs = measure_preparing(contents, seconds=0.5)
    assert costs["decode"].bytes_per_image == 3 * (480 * 640 + 800 * 1066) / 2
    assert costs["decode and resize"].bytes_per_image == 3 * 800 * 1066
    assert costs["read the header"].bytes_per_image == sum(map(len, contents)) / 2
    cores = [costs[way].cores(2) for way in ("read the header", "decode", "decode and resize")]
    assert 0 < cores[0] < cores[1] < cores[2]


def test_decoding_on_a_device_is_measured_behind_a_check_of_its_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU, whose decoder gives the pixels of preparers."""
    monkeypatch.setattr(decoding, "PUBLISHED_RESIZE", ResizeRule(4, 8))
    contents = [encode(Image.radial_gradient("L").resize((side, 5))) for side in (8, 9)]
    found = decoding.measure_decoding(contents, torch.device("cpu"), seconds=0.01)
    assert found.error == 0 and len(found.seconds) == len(found.cpu_seconds) >= 1
    monkeypatch.setattr(decoding, "MOST_ERROR", -1.0)
    with pytest.raises(Wrong, match="pixels differ by 0 from those of CPUs"):
        decoding.measure_decoding(contents, torch.device("cpu"), seconds=0.01)


def test_without_a_gpu_decoding_on_it_is_left_out(tmp_path: Path) -> None:
    context = Context("flow", tmp_path, "cpu", False, time.monotonic() + 60)
    with pytest.raises(Absent, match="`label --decode gpu` is for GPUs"):
        flow.check_gpu_decodes(context)


def test_without_ray_every_case_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "find_spec", lambda name: None if name == "ray" else object())
    flow.run(Context("flow", tmp_path, "cpu", False, time.monotonic() + 60))
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()
    ]
    left_out = [record for record in records if record["kind"] == LEFT_OUT]
    cases = [flow.PREPARING, flow.DECODING, *flow.CASES]
    assert [record["case"] for record in left_out] == cases
    assert "needs ray: `python -m jobs.bench.wheels DIR`" in left_out[0]["reason"]
