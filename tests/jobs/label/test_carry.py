"""`--carry` of the command: what it refuses, what a resumed run keeps, and what it prints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.label.label import label
from jobs.label.notices import print_plan_notices
from jobs.label.options import LabelOptions
from jobs.label.planning import plan_as_text, plan_images, plan_request
from jobs.label.run_record import read_run_record, recorded_command
from jobs.report.reports import report_of
from pipeline.plan.digests import NOTHING_KNOWN
from pipeline.storage.files import InputError, open_location
from tests.support.labelling import tiny_options
from tests.support.samples import jpeg, write_tar
from tests.support.tables import rows
from tests.support.unfinished import begin, resume


def write_parquet(path: Path, count: int = 3) -> Path:
    numbers = list(range(count))
    images = [jpeg(number) for number in numbers]
    splits = pa.array([None if n == 1 else f"s{n}" for n in numbers])
    pq.write_table(pa.table({"image": images, "split": splits, "n": numbers}), path)
    return path


@pytest.fixture
def options(tmp_path: Path) -> LabelOptions:
    (tmp_path / "lake").mkdir()
    write_parquet(tmp_path / "lake" / "p.parquet")
    return LabelOptions(str(tmp_path / "lake"), str(tmp_path / "out"), carry="split, n:float")


def test_a_resumed_run_keeps_its_columns(options: LabelOptions) -> None:
    begin(options)
    run = resume(replace(options, carry="split,n:float64"))  # the same in other words
    assert run is not None
    assert run.shards.carry.as_document() == {"split": "string", "n": "float64"}


@pytest.mark.parametrize("other", [None, "split", "n:float,split", "split,n"])
def test_a_run_is_not_resumed_with_other_columns(other: str | None, options: LabelOptions) -> None:
    """Its images would lack what this command wants, and only --relabel could add it."""
    run = begin(options)
    with pytest.raises(InputError, match="--carry 'split, n:float'`: run that command again"):
        resume(replace(options, carry=other))
    record = read_run_record(options.output, run.run_id)
    assert recorded_command(record).endswith("--carry 'split, n:float'")


def test_the_plan_says_what_is_carried_along(options: LabelOptions) -> None:
    pq.write_table(pa.table({"image": [jpeg(7)]}), Path(options.input) / "q.parquet")
    text = plan_as_text(plan_images(plan_request(options), NOTHING_KNOWN), None, "")
    assert "carried along: split (string), n (float64)\n" in text
    assert "1 new Parquet file without the column split: it is NULL there\n" in text


def test_images_that_are_there_keep_their_columns_and_it_is_said(
    options: LabelOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan_images(plan_request(options), NOTHING_KNOWN)
    same: dict[str, Any] = {"carried": {"split": "string", "n": "float64"}}
    typed: dict[str, Any] = {"carried": {"split": "string", "n": "int8"}}  # --carry says n:float
    said = "--carry is for new objects: the images that"
    for known, runs, expected in (
        (0, [same, {}], False),
        (3, [same], False),
        (3, [same, {}], True),
        (3, [typed], True),
        (0, [typed], False),
    ):
        print_plan_notices(options, replace(found, known=known), cast(Any, runs))
        assert (said in capsys.readouterr().err) == expected


@pytest.mark.parametrize("carry", ["nothere", "width", "split,Split", "split:text[", "image"])
def test_bad_columns_are_refused_before_anything_is_written(
    carry: str, options: LabelOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", options.input, options.output, "--model", "shapes-tiny"]
    assert main([*command, "--carry", carry]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path(options.output).exists()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


IMAGES = "SELECT uri[-9:] AS file, status, split, n FROM {} ORDER BY file, image_id"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_killed_resumed_and_grown_on_s3(
    bucket: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fs, lake = open_location(f"{bucket}/lake", "INPUT")
    fs.put_file(str(write_parquet(tmp_path / "p.parquet")), f"{lake}/p.parquet")
    text = b'{"split": "' + b"x" * 70_000 + b'", "n": 7}'
    samples = {"1.jpg": jpeg(8), "1.json": text, "2.jpg": b"none", "2.json": b'{"split": "t"}'}
    fs.put_file(str(write_tar(tmp_path / "t.tar", samples)), f"{lake}/t.tar")
    output = f"{bucket}/labels"
    options = tiny_options(f"{bucket}/lake", output, weights, carry="split,n", page=True)
    for step in ("jobs.label.label.label_images", "jobs.label.label.publish_run"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                label(options)
    capsys.readouterr()
    assert label(options) == 0
    assert "1 value could not be carried along and is NULL" in capsys.readouterr().err
    assert report_of(output)["carried"] == {
        "columns": {"split": "string", "n": "int64"},
        "not_carried": 1,
    }
    first = [
        ("p.parquet", "ok", "s0", 0),
        ("p.parquet", "ok", None, 1),
        ("p.parquet", "ok", "s2", 2),
        ("ke/t.tar", "ok", None, 7),
        ("ke/t.tar", "undecodable", "t", None),
    ]
    expected = [(name[-9:] if "tar" not in name else "ake/t.tar", *row) for name, *row in first]
    assert sorted(rows(output, IMAGES.format("images")), key=str) == sorted(expected, key=str)
    fs.put_file(str(write_parquet(tmp_path / "q.parquet", 1)), f"{lake}/q.parquet")
    with pytest.raises(InputError, match="--carry extra: no new Parquet file has such a column"):
        label(replace(options, carry="split,n,extra:string"))
    capsys.readouterr()
    assert label(replace(options, carry="n")) == 0
    assert rows(output, "SELECT split, n FROM images WHERE uri LIKE '%q.parquet'") == [(None, 0)]
    before = rows(output, IMAGES.format("latest_images"))
    compact(output)
    assert rows(output, IMAGES.format("latest_images")) == before and len(before) == 6
    assert main(["runs", output, "--verify"]) == 0
    assert label(replace(options, relabel=True)) == 0
    assert rows(output, "SELECT split, n FROM images WHERE uri LIKE '%q.parquet'") == [("s0", 0)]
