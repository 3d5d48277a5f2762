"""`make demo`: render a held-out lake, label it, and compare the labels with the known truth."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from jobs.demo_data import write_lake
from jobs.evaluate import average_precision
from jobs.label import label
from jobs.label_options import LabelOptions
from jobs.report import as_text, report_of
from jobs.views import connect

LAKE_SEED = 2_000_000  # neither training nor validation draws from it


def detections_of(output: str, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables as COCO results; `file_name` of the truth is the tables' image_id."""
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    rows = connect(output).sql(
        "SELECT image_id, label_id, score, x_min, y_min, x_max, y_max FROM detections"
    )
    return [
        {"image_id": ids[name], "category_id": k, "score": s, "bbox": [x, y, right - x, low - y]}
        for name, k, s, x, y, right, low in rows.fetchall()
    ]


def demo(folder: Path, images: int, usd_per_hour: float) -> int:
    """Everything in `folder`; a repeated demo labels into a fresh OUTPUT."""
    lake = folder / "lake"
    print(f"rendering {images} scenes into {lake} ...", flush=True)
    truth = json.loads(write_lake(lake, images, LAKE_SEED).read_text())
    output = str(folder / f"labels-{time.strftime('%Y%m%dT%H%M%S')}")
    options = LabelOptions(
        str(lake), output, model="shapes-tiny", score_threshold=0.0, usd_per_hour=usd_per_hour
    )
    code = label(options)
    if code:
        return code
    score = average_precision(truth, detections_of(output, truth))
    summary = report_of(output)
    print(as_text(summary))
    print(f"COCO AP        {score['AP']:.4f} (AP50 {score['AP50']:.4f}) against the known truth")
    print(f"tables         {output}/images, {output}/detections")
    print(f"report         {output}/_runs/{summary['run_id']}/report.html")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--usd-per-hour", type=float, default=0.10)
    arguments = parser.parse_args()
    raise SystemExit(demo(arguments.folder, arguments.images, arguments.usd_per_hour))
