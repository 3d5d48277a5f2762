"""`make demo`: render a held-out lake, label it, and compare the labels with the known truth."""

import time
from pathlib import Path

from jobs.demo.lake import write_lake
from jobs.evaluate.evaluate import evaluate
from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.output import paths
from jobs.report.report import as_text
from jobs.report.reports import report_of
from pipeline.storage.files import join

LAKE_SEED = 2_000_000  # neither training nor validation draws from it


def demo(folder: Path, images: int, usd_per_hour: float) -> int:
    """Everything in `folder`; a repeated demo labels into a fresh OUTPUT."""
    lake = folder / "lake"
    print(f"rendering {images} scenes into {lake}: up to a minute", flush=True)
    truth = write_lake(lake, images, LAKE_SEED)
    output = str(folder / f"labels-{time.strftime('%Y%m%dT%H%M%S')}")
    options = LabelOptions(
        str(lake), output, model="shapes-tiny", score_threshold=0.0, usd_per_hour=usd_per_hour
    )
    code = label(options)
    if code:
        return code
    score = evaluate(output, str(truth))["metrics"]
    summary = report_of(output)
    print(as_text(summary))
    print(f"COCO AP        {score['AP']:.4f} (AP50 {score['AP50']:.4f}) against the known truth")
    print("boxes          all of them, as AP wants; `label` keeps those that score 0.3 or more")
    print(f"tables         {output}/images, {output}/detections")
    print(f"report         {join(output, paths.document(summary['run_id'], 'report.html'))}")
    return 0
