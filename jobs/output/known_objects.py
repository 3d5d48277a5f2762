"""Objects that OUTPUT holds labels of, read from the plans of its runs.

No table is opened, except those of runs with failures that are tried again: which of their objects
failed stands in no plan.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from jobs.boxes.options import word_of
from jobs.output.catalog import Catalog
from jobs.output.documents import damaged_document
from jobs.output.log import READ_AT_ONCE
from jobs.output.manifest import Manifest, carry_of_run, files_of_table
from jobs.output.run_documents import choosing_options, read_document, score_threshold
from pipeline.plan.digests import Known, Objects, consume_into_known, digest_versions
from pipeline.plan.shards import PLAN, member_values, read_plan_tables
from pipeline.schema import (
    ALWAYS_RETRIED,
    FAILED_BY_READING,
    RETRIED_ON_REQUEST,
    UNSEEN,
    images_schema,
)
from pipeline.storage.errors import DamagedFile
from pipeline.storage.files import InputError, join, local_copy, open_location
from pipeline.storage.parquet import read_tables
from pipeline.storage.urls import identity, mask


@dataclass(frozen=True)
class LabelRequest:
    """The labels that a run would add."""

    source: str  # canonical URL of INPUT
    model: str
    score_threshold: float  # the lowest, where classes have their own
    fingerprint: str  # of the model, its weights and its settings, see jobs/label/fingerprint.py
    relabel: bool = False  # whether to replace the labels that OUTPUT has of INPUT
    retry_failed: bool = False  # whether to label again what failed for reasons outside the image
    # --format, --image-column and --id-column: under others, a file may fail that is in order.
    reading: tuple[str | None, ...] = ("auto", None, None)
    choosing: str = ""  # the options that choose boxes and tiles, as a user types them

    @property
    def retried(self) -> frozenset[str]:
        """The statuses of images that are labelled again."""
        return ALWAYS_RETRIED | RETRIED_ON_REQUEST if self.retry_failed else ALWAYS_RETRIED

    @property
    def way_to_other_labels(self) -> str:
        """What a user does to get these labels beside runs of other labels."""
        if self.relabel:
            return f"or another OUTPUT: --relabel replaces the labels of INPUT {self.source} alone"
        return "another OUTPUT, or, for the same INPUT, --relabel"

    def replaced_runs(self, runs: Sequence[Manifest]) -> list[str]:
        """Ids of the committed `runs` over the same INPUT if this is `relabel`, else none."""
        return [run["run_id"] for run in runs if self.relabel and run["input"] == self.source]


def known_objects(
    output: str, request: LabelRequest, catalog: Catalog, attempts: Collection[str] = ()
) -> Known:
    """The objects that need not be labelled again, each in the version that was labelled last.

    `attempts` are the ids of runs whose failures are not tried again, because the same command
    made them.

    Raises InputError if OUTPUT has labels of another model, weights or threshold. Raises it too if
    a run read an archive in part: this run would lose the rest, or label the beginning twice.
    """
    runs = catalog.committed_runs()
    replaced = request.replaced_runs(runs)
    for run in runs:
        if run["run_id"] not in replaced and run["model_fingerprint"] != request.fingerprint:
            raise _other_labels(output, run, request)
    return read_known_objects(
        output,
        runs,
        request.source,
        replaced,
        request.retried,
        attempts,
        request.reading,
        request.relabel,
    )


def _other_labels(output: str, run: Manifest, request: LabelRequest) -> InputError:
    """The error for a run of OUTPUT whose labels are others than those of the request."""
    run_id = run["run_id"]
    before, options = score_threshold(output, run_id), choosing_options(output, run_id)
    same = (run["model"], before) == (request.model, request.score_threshold)
    weights = " with other weights" if same and options == request.choosing else ""
    chosen = f" with {request.choosing}" if request.choosing and options != request.choosing else ""
    threshold = "threshold"
    if options or request.choosing:
        threshold += f", and {options or 'no options that choose boxes or tiles'}"
    return InputError(
        f"{mask(output)} holds labels of {run['model']} over {run['input']} from a score of "
        f"{word_of(before)} up (fingerprint {run['model_fingerprint']}), and this would be "
        f"{request.model}{weights} from {word_of(request.score_threshold)} up{chosen} "
        f"({request.fingerprint}): "
        f"use the same model, weights and {threshold}, {request.way_to_other_labels}"
    )


def read_known_objects(
    output: str,
    runs: list[Manifest],
    source: str,
    replaced: Collection[str] = (),
    retried: Collection[str] = ALWAYS_RETRIED,
    attempts: Collection[str] = (),
    reading: tuple[str | None, ...] | None = None,
    relabel: bool = False,
) -> Known:
    """The objects that `runs` labelled; `runs` are sorted from the oldest.

    Objects of runs over the INPUT `source` are marked as objects of this INPUT. Objects of
    `replaced` runs do not count as labelled, but can be found to be gone from INPUT. With `relabel`
    no objects count as labelled: of other INPUTs the labels stay, and the new ones supersede them.
    Nor do objects with an image whose status is one of `retried`, unless a later run labelled them
    or their run is one of `attempts`. If `reading` is given, what failed under other options is
    retried too.
    """
    runs = sorted(runs, key=lambda run: run["run_id"] not in replaced)

    def objects(run: Manifest) -> list[Objects]:
        labelled = run["run_id"] not in replaced and not relabel
        tables = _plan(output, run, whole=labelled)
        # Earlier versions knew fewer names of secret parameters, and wrote the others into plans.
        pairs = (
            zip(_identities(table), member_values(table, "etag").to_pylist(), strict=True)
            for table in tables
        )
        of_input = run["input"] == source
        found = [Objects(digest_versions(chain.from_iterable(pairs)), labelled, of_input)]
        statuses = [status for status in retried if run["images"].get(status)]
        misread = [status for status in FAILED_BY_READING if run["images"].get(status)]
        if misread and reading is not None and _reading(output, run) not in (None, reading):
            statuses += misread
        if labelled and statuses and run["run_id"] not in attempts:
            failed = digest_versions(_failed_objects(output, run, statuses))
            found.append(Objects(failed, labelled=False, of_input=of_input))
        return found

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        by_run = list(chain.from_iterable(pool.map(objects, runs)))
    return consume_into_known(by_run, partial(_uris, output, runs))


def _reading(output: str, run: Manifest) -> tuple[str | None, ...] | None:
    """The options by which a run read its files. None if they are not known."""
    try:
        options = read_document(output, run["run_id"], "run.json").get("options")
    except FileNotFoundError:
        return None
    if not isinstance(options, dict):
        return None
    return options.get("format", "auto"), options.get("image_column"), options.get("id_column")


def _failed_objects(
    output: str, run: Manifest, statuses: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The objects (uri, etag) of a run that have an image with one of these statuses.

    Raises DamagedOutput if a table is damaged or missing.
    """
    wanted, schema = pa.array(statuses, pa.string()), images_schema(carry_of_run(run))
    for file in files_of_table(run, "images"):
        url = join(output, file["path"])
        try:
            with local_copy(*open_location(url, "OUTPUT")) as table:
                for rows in read_tables(table, url, schema, ["uri", "etag", "status"]):
                    failed = rows.filter(pc.is_in(rows["status"], wanted))
                    etags = pc.fill_null(failed["etag"], UNSEEN)
                    uris = (identity(uri) for uri in failed["uri"].to_pylist())
                    yield from zip(uris, etags.to_pylist(), strict=True)
        except (DamagedFile, FileNotFoundError) as error:
            raise damaged_document(file["path"]) from error


def read_plan(output: str, name: str, columns: Sequence[str] = PLAN.names) -> Iterator[pa.Table]:
    """Read the plan `name` below OUTPUT, some shards at a time. Raises DamagedOutput."""
    try:
        yield from read_plan_tables(join(output, name), columns)
    except DamagedFile as error:
        raise damaged_document(name) from error


def _uris(output: str, runs: list[Manifest]) -> Iterator[pa.Array]:
    for run in runs:
        for table in _plan(output, run, whole=False):
            yield pa.array(_identities(table), pa.string())


def _identities(table: pa.Table) -> list[str]:
    return [identity(uri) for uri in member_values(table, "uri").to_pylist()]


def _plan(output: str, run: Manifest, whole: bool) -> Iterator[pa.Table]:
    """Read the plan of a run. Raises InputError if `whole` is set and --limit cut an archive."""
    for table in read_plan(output, run["plan"], ["shard", "members", "limit"]):
        cut = table.filter(pc.is_valid(table["limit"]))
        if whole and len(cut):
            raise InputError(
                f"{mask(output)} holds a run over {run['input']} in which --limit cut "
                f"{cut['shard'][0]} short: label it whole into another OUTPUT, or that INPUT again "
                "with --relabel"
            )
        yield table
