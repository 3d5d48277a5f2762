"""The columns of Parquet files that a command names are kept by its run, and said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import parser
from jobs.compact import compact
from jobs.label.options import LabelOptions
from jobs.label.planning import plan_as_text, plan_images, plan_request
from jobs.output.catalog import committed_runs
from jobs.output.known_objects import read_plan
from jobs.output.run_documents import read_document, write_record, write_table
from pipeline.plan.digests import NOTHING_KNOWN
from pipeline.plan.shards import shards_of_table, table_of_shards, write_shards
from pipeline.storage.files import InputError
from tests.support.nights import write_nights
from tests.support.samples import jpeg
from tests.support.unfinished import begin, resume


@pytest.fixture
def options(tmp_path: Path) -> LabelOptions:
    """A command over one Parquet file with two columns of images."""
    table = pa.table({"photo": [jpeg(1)], "scan": [jpeg(2)], "name": ["a"]})
    pq.write_table(table, tmp_path / "p.parquet")
    return LabelOptions(
        str(tmp_path / "p.parquet"),
        str(tmp_path / "out"),
        image_column="scan",
        id_column="name",
    )


def test_a_resumed_run_reads_the_columns_that_it_was_planned_with(options: LabelOptions) -> None:
    begin(options)
    run = resume(options)
    assert run is not None
    (shard,) = run.shards
    assert (shard.image_column, shard.id_column) == ("scan", "name")


@pytest.mark.parametrize("other", [{"image_column": "photo"}, {"id_column": None}])
def test_a_run_is_not_resumed_with_other_columns(
    other: dict[str, Any], options: LabelOptions
) -> None:
    begin(options)
    with pytest.raises(InputError, match="--image-column scan --id-column name`: run that command"):
        resume(replace(options, **other))


def test_a_run_of_a_version_without_these_options_is_resumed(options: LabelOptions) -> None:
    plain = replace(options, image_column=None, id_column=None)
    run = begin(plain)
    record = read_document(options.output, run.run_id, "run.json")
    for name in ("image_column", "id_column"):
        del record["options"][name]
    write_record(options.output, run.run_id, record)
    assert resume(plain) is not None


def test_the_plan_says_which_columns_hold_the_images(options: LabelOptions) -> None:
    found = plan_images(plan_request(options), NOTHING_KNOWN)
    assert "images of 1 new Parquet file: column scan\n" in plan_as_text(found, None, "")
    found = plan_images(plan_request(replace(options, image_column=None)), NOTHING_KNOWN)
    said = "column photo in the first, chosen from photo, scan by its values\n"
    assert said in plan_as_text(found, None, "")
    run = begin(options)
    record = read_document(options.output, run.run_id, "run.json")
    assert record["image_columns"] == {"column scan": 1}


def test_compaction_keeps_the_columns(tmp_path: Path) -> None:
    output = write_nights(tmp_path / "labels")
    for run in committed_runs(output):
        plan = Path(output, run["plan"])
        shards = [
            replace(shard, image_column="scan", id_column="name") if shard.kind == "tar" else shard
            for shard in shards_of_table(pq.read_table(plan))
        ]
        write_table(str(plan), table_of_shards(shards))
    compact(output)
    (run,) = committed_runs(output)
    shards = list(write_shards(read_plan(output, run["plan"])))
    found = {(shard.kind, shard.image_column, shard.id_column) for shard in shards}
    assert found == {("files", None, None), ("tar", "scan", "name")}


def test_the_command_line_has_the_options() -> None:
    given = parser().parse_args(
        ["label", "lake", "out", "--image-column", "a.b", "--id-column", "name"]
    )
    assert (given.image_column, given.id_column) == ("a.b", "name")
