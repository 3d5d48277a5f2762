"""`detr-batch bench table`: checks its options, measures and prints."""

from jobs.bench.detectors import DETECTOR
from jobs.bench.options import TableOptions
from jobs.bench.subjects import add_to_results, print_results, resolved_precision_of
from jobs.bench.table.accuracy import coco_metrics
from jobs.bench.table.table import as_markdown, bench_table
from model.named import named_model
from pipeline.storage.errors import InputError


def table(options: TableOptions) -> None:
    """Print the table of published detectors, and what this machine measures beside it.

    InputError for unknown models, and for options of AP of which some are missing.
    """
    models = options.model.split(",")
    for model in models:
        named_model(model)
    given = (options.weights, options.images, options.annotations)
    if any(given) and (not all(given) or len(models) != 1):
        raise InputError(
            "AP takes one --model with its --weights, --images and --annotations: give all of them"
        )
    if options.usd_per_hour is not None and not 0 <= options.usd_per_hour < float("inf"):
        raise InputError(f"--usd-per-hour {options.usd_per_hour:g}: give a price of 0 or more")
    resolved_precision_of(options)  # refuses a device that is not here
    metrics: dict[str, dict[str, float]] = {}
    if options.weights and options.images and options.annotations:
        found = coco_metrics(
            models[0],
            options.weights,
            options.images,
            options.annotations,
            options.device,
            options.precision,
        )
        metrics[models[0]] = found
    measured = bench_table(models, options.precision, options.device, options.seconds)
    add_to_results(options, measured)
    if options.json:
        print_results(options, measured, DETECTOR, {"ap": metrics})
    else:
        print(as_markdown(measured, metrics, options.usd_per_hour))
