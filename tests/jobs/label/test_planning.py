"""Planning decides what a new or a resumed run labels; these tests need no detector."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.label.options import LabelOptions
from jobs.label.planning import (
    plan_as_text,
    plan_images,
    plan_request,
    plan_url,
    unversioned_as_lines,
)
from jobs.label.unfinished import unfinished_runs_as_lines
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.known_objects import known_objects
from jobs.output.run_documents import read_document, write_record, write_table
from pipeline.plan.plan import plan_shards
from pipeline.plan.remaining import merge_ranges, remaining_work
from pipeline.plan.shards import (
    read_shards_of_group,
    table_of_shards,
    tables_of_shards,
    write_shards,
)
from pipeline.storage.files import InputError, canonical_url
from tests.support.committed import commit_run, make_target
from tests.support.labelled import Labelled, write_run
from tests.support.samples import jpeg, write_jpegs, write_tar
from tests.support.unfinished import MARK, begin, labels_of, resume
from tests.support.web import VersionedFile, served_files

NO_URIS = pa.array([], pa.string())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "photos", "ab")


@pytest.fixture
def served(photos: Path) -> Iterator[str]:
    """The address of a server for `photos`."""
    with served_files(photos) as address:
        yield address


def unfinished_lines(options: LabelOptions) -> list[str]:
    catalog = read_catalog(options.output)
    return unfinished_runs_as_lines(catalog, plan_request(options), labels_of(options))


def test_a_dry_run_refuses_and_names_the_unfinished_run_that_the_run_would(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    assert unfinished_lines(options) == []
    run = begin(options, "20260101T000000Z-aaaaaa")
    before = sorted(tmp_path.rglob("*"))
    assert unfinished_lines(options) == [
        f"run {run.run_id} of a command that was cut off is finished first"
    ]
    with pytest.raises(InputError, match="run that command again to finish it"):
        unfinished_lines(replace(options, limit=1))
    assert unfinished_lines(replace(options, relabel=True)) == [
        f"run {run.run_id} of a command that was cut off is dropped"
    ]
    command = ["label", str(photos), options.output, "--model", "shapes-tiny", "--dry-run"]
    assert main([*command, "--weights", "random"]) == 2
    assert "run that command again to finish it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("asked", ["auto", "fp32"])
def test_a_resumed_run_keeps_its_device_and_precision(
    asked: str, photos: Path, tmp_path: Path
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"), precision=asked)
    begin(options, "20260101T000000Z-aaaaaa")
    run = resume(options)
    assert run is not None
    assert (run.device, run.precision) == ("cpu", "fp32")


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"device": "cuda"}])
def test_a_run_is_not_resumed_in_another_precision_or_on_another_device(
    other: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    begin(options, "20260101T000000Z-aaaaaa")
    with pytest.raises(InputError, match="--device cpu --precision fp32`: run that command"):
        resume(replace(options, **other))


def test_a_run_that_an_earlier_version_began_is_resumed_as_the_command_says(
    photos: Path, tmp_path: Path
) -> None:
    """Versions before 0.2 recorded no computation."""
    options = LabelOptions(str(photos), str(tmp_path / "out"), precision="fp32")
    run = begin(options, "20260101T000000Z-aaaaaa")
    record = read_document(options.output, run.run_id, "run.json")
    del record["computation"]
    write_record(options.output, run.run_id, record)
    found = resume(options)
    assert found is not None
    assert (found.device, found.precision) == ("auto", "fp32")


def test_a_list_of_signed_addresses_is_resumed_with_its_new_signatures(
    served: str, tmp_path: Path
) -> None:
    list_file = tmp_path / "list.txt"
    list_file.write_text(f"{served}/a.jpg?token=old\n{served}/b.jpg?token=old\n")
    options = LabelOptions(str(list_file), str(tmp_path / "out"))
    begin(options, "20260101T000000Z-aaaaaa")
    list_file.write_text(f"{served}/b.jpg?token=new\n")  # the list has a.jpg no longer
    run = resume(options)
    assert run is not None
    uris = [member.uri for shard in run.shards for member in shard.members]
    assert uris == [f"{served}/a.jpg?token=old", f"{served}/b.jpg?token=new"]


@pytest.mark.slow
def test_a_plan_that_an_earlier_version_wrote_is_resumed(photos: Path, tmp_path: Path) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    run = begin(options, "20260101T000000Z-aaaaaa")
    (shard,) = run.shards
    shards = [replace(shard, shard=f"files-{number:04}") for number in range(700)]
    plan = plan_url(options.output, run.run_id)
    write_table(plan, table_of_shards(shards))  # all in one row group
    taken_up = resume(options)
    assert taken_up is not None
    work, size = remaining_work(taken_up.shards, merge_ranges([]))
    assert size == 700 * shard.size
    assert [len(one.rows) for one in work] == [2] * 94 + [1] * 512
    read = [one for w in work for one in read_shards_of_group(plan, w.group, w.rows)]
    assert sorted(read, key=lambda one: one.shard) == shards


@pytest.mark.parametrize("archives", [True, False])
def test_a_run_whose_archives_an_earlier_version_read_otherwise_is_planned_anew(
    archives: bool, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if archives:
        write_tar(photos / "t.tar", {"a.jpg": jpeg()})
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    run = begin(options, "20260101T000000Z-aaaaaa")
    record = read_document(options.output, run.run_id, "run.json")
    del record["numbering"]
    write_record(options.output, run.run_id, record)
    found = resume(options)
    assert (found is None) == archives
    assert Path(options.output, paths.staging(run.run_id)).exists() != archives
    assert ("planned and labelled anew" in capsys.readouterr().err) == archives


@pytest.mark.parametrize(("relabel", "limit"), [(True, None), (False, 1)])
def test_a_run_killed_while_it_removed_staging_is_not_repeated(
    relabel: bool, limit: int | None, photos: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    options = LabelOptions(str(photos), output, relabel=relabel, limit=limit)
    run = begin(options, "20260101T000000Z-aaaaaa")
    target = make_target(output, run.run_id, fingerprint=MARK)
    commit_run(target, canonical_url(str(photos)), [], {"ok": 2})
    taken_up = resume(options)
    assert taken_up is not None
    assert (taken_up.run_id, len(taken_up.shards)) == (run.run_id, 0)
    assert not Path(output, paths.staging(run.run_id)).exists()
    assert resume(options) is None  # the same command again is another run


def test_relabel_plans_all_images_again_and_reports_removed_ones(
    photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    known = [f"file://{photos}/{name}.jpg" for name in ("a", "b", "left")]
    write_run(output, [Labelled(uri) for uri in known], ("",), source=canonical_url(str(photos)))
    # The objects that lie there now are those that were labelled.
    shards = plan_shards(str(photos)).shards
    shards.write_to(str(output / "_runs/20260101T000000Z-aaaaaa/plan.parquet"))
    options = LabelOptions(str(photos), str(output))
    found = plan_images(
        plan_request(options),
        known_objects(str(output), labels_of(options), read_catalog(str(output))),
    )
    assert (len(found.shards), found.known, found.changed) == (0, 2, 0)
    again = LabelOptions(str(photos), str(output), relabel=True)
    cut = write_shards(tables_of_shards(replace(shard, limit=1) for shard in shards))
    cut.write_to(str(output / "_runs/20260101T000000Z-aaaaaa/plan.parquet"))
    with pytest.raises(InputError, match="--relabel"):
        known_objects(str(output), labels_of(options), read_catalog(str(output)))
    (photos / "b.jpg").unlink()
    found = plan_images(
        plan_request(again),
        known_objects(str(output), labels_of(again, "another model"), read_catalog(str(output))),
    )
    assert [len(shard.members) for shard in found.shards] == [1]
    assert (found.known, found.changed) == (0, 0)
    assert found.gone.to_pylist() == [f"file://{photos}/b.jpg"]


def test_objects_without_a_version_are_counted_in_a_line(tmp_path: Path) -> None:
    file = VersionedFile(jpeg())
    with file.served() as address:
        (tmp_path / "list.txt").write_text(f"{address}/a.jpg\n{address}/b.jpg\n")
        found = plan_shards(str(tmp_path / "list.txt"))
        (line,) = unversioned_as_lines(found)
        assert line.startswith("2 objects of INPUT without ETag, digest or Last-Modified")
        assert line in plan_as_text(found, None, "")
        file.headers = {"ETag": '"1"'}
        assert unversioned_as_lines(plan_shards(str(tmp_path / "list.txt"))) == []


def test_a_link_that_leads_nowhere_is_no_object_of_a_store_without_versions(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").symlink_to("nowhere")
    found = plan_shards(str(tmp_path))
    assert found.shards.images == 2
    assert unversioned_as_lines(found) == []
