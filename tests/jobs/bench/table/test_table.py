"""`bench table`: counted operations, the page's rows beside those that were measured, and AP."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.bench.gpu.sizes import coco_sizes
from jobs.bench.measure import Measurement
from jobs.bench.table.accuracy import coco_metrics
from jobs.bench.table.table import COMMONEST, SIZES, as_markdown, counted_sizes, gmacs, network
from jobs.cli import main
from jobs.demo.scenes import SHAPES, scene
from model.named import MODELS
from pipeline.storage.errors import InputError


def test_operations_are_counted_at_sizes_that_stand_for_cocos() -> None:
    sizes = coco_sizes()
    chosen = counted_sizes()
    assert len(chosen) == SIZES and set(chosen) <= sizes.keys()
    areas = [height * width for height, width in sizes for _ in range(sizes[height, width])]
    mean = np.mean([height * width for height, width in chosen])
    assert mean == pytest.approx(np.mean(areas), rel=0.03)
    assert gmacs(network("shapes-tiny"), "shapes-tiny", COMMONEST) == pytest.approx(
        MODELS["shapes-tiny"].gmacs, abs=0.05
    )


def row(model: str, batch: int, rate: float) -> Measurement:
    details = {"parameters_m": 34.07, "gmacs": 76.1}
    numbers = {"p20_ms": 1.0, "p50_ms": 1.0, "p80_ms": 1.0, "error": float("nan")}
    return Measurement(
        "table", f"{model}, x", "ours", batch, "bf16", images_per_second=rate,
        peak_memory_mib=99, details=details, **numbers,
    )  # fmt: skip


def test_the_page_stands_above_what_was_measured() -> None:
    measured = [
        row("deformable-detr-single-scale", 1, 40.0),
        row("deformable-detr-single-scale", 8, 400.0),
        row("shapes-tiny", 1, 9.0),
    ]
    metrics = {"shapes-tiny": {"AP": 0.8637, "AP_S": 0.737}}
    lines = as_markdown(measured, metrics, usd_per_hour=3.6).splitlines()
    assert lines[2].startswith("| Deformable DETR, single scale, the page | 34 M | 78 | 39.4 |")
    ours, tiny = lines[3:5]
    assert "| 34.07 M | 76.1 | 39.4 (published) | - | 40.00 | 400.00 (of 8) | 99 | 0.0025 |" in ours
    assert "| 86.4 | 73.7 | 9.00 | 9.00 (of 1) | 99 | 0.1111 |" in tiny
    assert not any("DETR, DC5" in line for line in lines)  # not measured


@pytest.mark.slow
def test_ap_of_any_detector(tmp_path: Path) -> None:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(4):
        one = scene(7, number)
        height, width = one.pixels.shape[:2]
        Image.fromarray(one.pixels).save(tmp_path / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        for (left, top, right, bottom), label in zip(
            one.boxes.tolist(), one.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 100 + label,
                    "bbox": [left, top, right - left, bottom - top], "iscrowd": 0,
                    "area": (right - left) * (bottom - top),
                }
            )  # fmt: skip
    categories = [{"id": 100 + number, "name": name} for number, name in enumerate(SHAPES) if name]
    file = tmp_path / "truth.json"
    document = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(document))
    found = coco_metrics("shapes-tiny", None, tmp_path, file, "cpu", "fp32")
    assert found["AP"] > 0.6
    document["categories"] = [{"id": 100 + n, "name": f"no {n}"} for n in range(len(SHAPES))]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="has no class of shapes-tiny"):
        coco_metrics("shapes-tiny", None, tmp_path, file, "cpu", "fp32")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model", "detrr"], "did you mean detr?"),
        (["--weights", "packaged"], "AP takes one --model with its --weights"),
        (["--usd-per-hour", "-1"], "--usd-per-hour -1: give a price of 0 or more"),
        (["--precision", "int8", "--device", "cpu"], "int8"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "table", *options]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_model_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    command = ["bench", "table", "--model", "shapes-tiny", "--seconds", "1"]
    assert main([*command, "--results", str(rows)]) == 0
    assert "`shapes-tiny`" in capsys.readouterr().out
    (found,) = csv.DictReader(rows.open())
    assert found["benchmark"] == "table" and float(found["images_per_second"]) > 0
    assert json.loads(found["details"])["parameters_m"] == pytest.approx(3.2, abs=0.1)
