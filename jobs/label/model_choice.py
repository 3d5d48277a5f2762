"""The model of a `label` command that names none: the model that OUTPUT has labels of."""

from dataclasses import replace

from jobs.label.log.lines import print_line
from jobs.label.options import DEFAULT_MODEL, LabelOptions
from jobs.label.run_record import read_run_record
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.store import OutputStore
from model.detectors import is_ours, settled
from model.named import MODELS
from pipeline.storage.errors import InputError
from pipeline.storage.files import explain_errors
from pipeline.storage.urls import mask, printable


def choose_model(options: LabelOptions) -> LabelOptions:
    """The options with a model. A line says which, where OUTPUT decides it.

    Raises DamagedOutput if the documents of OUTPUT are damaged.
    """
    if options.model is not None:
        return replace(options, model=settled(options.model))
    known = model_of_output(options.output)
    if known is not None and known not in MODELS:  # a document must not choose what code runs
        raise InputError(
            f"{mask(options.output)} holds labels of {printable(known)}: give --model again, that "
            "one or another"
        )
    if known is not None:
        print_line(f"--model {known}, as in the last run of {mask(options.output)}")
    return replace(options, model=known or DEFAULT_MODEL)


def model_of_output(output: str) -> str | None:
    """The model of the newest run of OUTPUT, finished or not. None if there is none of ours.

    The name that `import` gives to the detections of another program is none of ours.
    """
    models = {run["run_id"]: run["model"] for run in read_catalog(output).labelling_runs()}
    with explain_errors("OUTPUT", output):
        staged = OutputStore(output).names(paths.STAGING)
    for run_id in filter(None, map(paths.run_of_plan_under_way, staged)):
        models[run_id] = read_run_record(output, run_id)["options"]["model"]
    ours = [model for _, model in sorted(models.items()) if is_ours(model)]
    return ours[-1] if ours else None
