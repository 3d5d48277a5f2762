"""The model of a `label` command that names none: the model that OUTPUT has labels of."""

from contextlib import suppress
from dataclasses import replace

from jobs.label.log.lines import print_line
from jobs.label.options import DEFAULT_MODEL, LabelOptions
from jobs.label.run_record import read_run_record
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.errors import DamagedOutput
from jobs.output.store import OutputStore
from model.detectors import settled
from model.named import MODELS, is_ours, weights_of
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.urls import mask, printable


def choose_model(options: LabelOptions) -> LabelOptions:
    """The options with a model. A line says which, where OUTPUT decides it.

    Raises DamagedOutput if the documents of OUTPUT are damaged.
    """
    if options.model is not None:
        return replace(options, model=settled(options.model))
    found = choice_of_output(options.output)
    known, weights = found or (None, None)
    if known is not None and known not in MODELS:  # a document must not choose what code runs
        raise InputError(
            f"{mask(options.output)} holds labels of {printable(known)}: give --model again, that "
            "one or another"
        )
    if known and weights and options.weights is None and _is_other(known, weights):
        raise InputError(
            f"{mask(options.output)} holds labels of {known} with --weights {printable(weights)}: "
            "give --model and --weights again, those or others"
        )
    if known is not None:
        print_line(f"--model {known}, as in the last run of {mask(options.output)}")
    return replace(options, model=known or DEFAULT_MODEL)


def _is_other(model: str, weights: str) -> bool:
    """Whether these weights are not the model's own, however those are called."""
    return weights_of(model, weights) != weights_of(model, None)


def choice_of_output(output: str) -> tuple[str, str | None] | None:
    """The model of the newest run of OUTPUT, finished or not, and its weights if it named some.

    None if there is no run of ours. The name that `import` gives to the detections of another
    program is none of ours.
    """
    models = {run["run_id"]: run["model"] for run in read_catalog(output).labelling_runs()}
    with explain_errors("OUTPUT", output):
        staged = OutputStore(output).names(paths.STAGING)
    for run_id in filter(None, map(paths.run_of_plan_under_way, staged)):
        models[run_id] = read_run_record(output, run_id)["options"]["model"]
    ours = [run_id for run_id, model in sorted(models.items()) if is_ours(model)]
    if not ours:
        return None
    given = None
    # An import has no weights, and `runs --verify` reports what is damaged of a finished run.
    with suppress(DamagedOutput):
        given = read_run_record(output, ours[-1])["options"]["weights"]
    return models[ours[-1]], given
