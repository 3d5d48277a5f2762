"""Objects that OUTPUT holds labels of, read from the plans of its runs. No table is opened."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from jobs.output.catalog import Catalog
from jobs.output.documents import damaged_document
from jobs.output.log import READ_AT_ONCE
from jobs.output.manifest import Manifest
from jobs.output.run_documents import score_threshold
from pipeline.plan.digests import Known, Objects, consume_into_known, digest_versions
from pipeline.plan.shards import PLAN, member_values, read_plan_tables
from pipeline.storage.errors import DamagedFile
from pipeline.storage.files import InputError, join
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class LabelRequest:
    """The labels that a run would add."""

    source: str  # canonical URL of INPUT
    model: str
    score_threshold: float
    fingerprint: str  # of the model, its weights and its settings, see jobs/label/fingerprint.py
    relabel: bool = False  # whether to replace the labels that OUTPUT has of INPUT

    def replaced_runs(self, runs: Sequence[Manifest]) -> list[str]:
        """Ids of the committed `runs` over the same INPUT if this is `relabel`, else none."""
        return [run["run_id"] for run in runs if self.relabel and run["input"] == self.source]


def known_objects(output: str, request: LabelRequest, catalog: Catalog) -> Known:
    """The objects that need not be labelled again, each in the version that was labelled last.

    Raises InputError if OUTPUT has labels of another model, weights or threshold. Raises it too if
    a run read an archive in part: this run would lose the rest, or label the beginning twice.
    """
    runs = catalog.committed_runs()
    replaced = request.replaced_runs(runs)
    for run in runs:
        if run["run_id"] not in replaced and run["model_fingerprint"] != request.fingerprint:
            before = score_threshold(output, run["run_id"])
            raise InputError(
                f"{mask(output)} holds labels of {run['model']} over {run['input']} from a "
                f"score of {before:g} up (fingerprint {run['model_fingerprint']}), and this would "
                f"be {request.model} from {request.score_threshold:g} up ({request.fingerprint}): "
                "use the same model, weights and threshold, another OUTPUT, or, for the same "
                "INPUT, --relabel"
            )
    return read_known_objects(output, runs, request.source, replaced)


def read_known_objects(
    output: str, runs: list[Manifest], source: str, replaced: Collection[str] = ()
) -> Known:
    """The objects that `runs` labelled; `runs` are sorted from the oldest.

    Objects of runs over the INPUT `source` are marked as objects of this INPUT. Objects of
    `replaced` runs do not count as labelled, but can be found to be gone from INPUT.
    """
    runs = sorted(runs, key=lambda run: run["run_id"] not in replaced)

    def objects(run: Manifest) -> Objects:
        stays = run["run_id"] not in replaced
        tables = _plan(output, run, whole=stays)
        pairs = (
            zip(*(member_values(table, name).to_pylist() for name in ("uri", "etag")), strict=True)
            for table in tables
        )
        return Objects(digest_versions(chain.from_iterable(pairs)), stays, run["input"] == source)

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return consume_into_known(list(pool.map(objects, runs)), partial(_uris, output, runs))


def read_plan(output: str, name: str, columns: Sequence[str] = PLAN.names) -> Iterator[pa.Table]:
    """Read the plan `name` below OUTPUT, some shards at a time. Raises DamagedOutput."""
    try:
        yield from read_plan_tables(join(output, name), columns)
    except DamagedFile as error:
        raise damaged_document(name) from error


def _uris(output: str, runs: list[Manifest]) -> Iterator[pa.Array]:
    for run in runs:
        for table in _plan(output, run, whole=False):
            yield member_values(table, "uri")


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
