"""Parquet files without images are left out with a reason, and the columns of the others said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import footers
from pipeline.plan.digests import Objects, consume_into_known, digest_versions
from pipeline.plan.listing import NO_IMAGE_COLUMN
from pipeline.plan.plan import Plan, left_out_as_text, plan_shards
from pipeline.plan.shards import read_plan_tables, table_of_shards, write_shards
from pipeline.schema import DETECTIONS, IMAGES
from pipeline.storage.files import InputError
from tests.support.samples import encoded, jpeg, write_tar
from tests.support.web import served_files


def names(found: Plan) -> list[str]:
    return [shard.shard.rsplit("/", 1)[-1] for shard in found.shards]


def write(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Tars with the metadata of a scraper, tables of another OUTPUT, and Parquet files."""
    lake = tmp_path / "lake"
    write(lake / "00000.parquet", url=["http://h/a.jpg"], sha256=["ab"], width=[3])
    write(lake / "00001.parquet", key=["a"], embedding=[b"v" * 256], sha256=[b"h" * 32])
    write_tar(lake / "00000.tar", {"a.jpg": jpeg()})
    for name, schema in (("images", IMAGES), ("detections", DETECTIONS)):
        (lake / "other" / name).mkdir(parents=True)
        pq.write_table(schema.empty_table(), lake / "other" / name / "part-0.parquet")
    write(lake / "photos.parquet", jpg=[jpeg()], id=[7])
    write(lake / "pairs.parquet", photo=[jpeg()], thumb=[jpeg()], id=[8])
    return lake


def test_parquet_files_without_images_are_left_out_with_a_reason(lake: Path) -> None:
    found = plan_shards(str(lake))
    assert names(found) == ["00000.tar", "pairs.parquet", "photos.parquet"]
    assert found.left_out == {NO_IMAGE_COLUMN: 4}
    assert f"{NO_IMAGE_COLUMN} (4)" in left_out_as_text(found.left_out)
    assert found.image_columns == {
        "column jpg": 1,
        "column photo in the first, chosen from photo, thumb by its values": 1,
    }
    found = plan_shards(str(lake), format="parquet")
    assert names(found) == ["pairs.parquet", "photos.parquet"]
    assert found.left_out[NO_IMAGE_COLUMN] == 4


def test_tables_of_this_output_behind_a_link_are_left_out(lake: Path, tmp_path: Path) -> None:
    (lake / "labels.parquet").symlink_to(lake / "other" / "images" / "part-0.parquet")
    assert plan_shards(str(lake)).left_out == {NO_IMAGE_COLUMN: 5}


def test_known_files_are_not_looked_at(lake: Path) -> None:
    members = [member for shard in plan_shards(str(lake)).shards for member in shard.members]
    versions = [(member.uri, member.etag) for member in members]
    known = consume_into_known([Objects(digest_versions(versions))], lambda: iter([]))
    found = plan_shards(str(lake), known=known)
    assert (len(found.shards), found.known, found.image_columns) == (0, 3, {})
    assert found.left_out == {NO_IMAGE_COLUMN: 4}


def test_a_named_column_is_planned_and_kept(lake: Path, tmp_path: Path) -> None:
    found = plan_shards(str(lake), image_column="thumb", id_column="id")
    assert names(found) == ["00000.tar", "pairs.parquet", "photos.parquet"]
    assert found.image_columns == {"column thumb": 1}
    found.shards.write_to(str(tmp_path / "plan.parquet"))
    again = write_shards(read_plan_tables(str(tmp_path / "plan.parquet")))
    named = [(shard.image_column, shard.id_column) for shard in again]
    assert named == [(None, None), ("thumb", "id"), ("thumb", "id")]
    (row,) = encoded(list(again)[2])
    assert row["status"] == "empty_shard"
    assert "no column thumb (--image-column): the columns are jpg, id" in row["error"]
    # Bytes that are called otherwise, and a text, are planned where they are named.
    assert "00001.parquet" in names(plan_shards(str(lake), image_column="sha256"))


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"image_column": "pictur"}, "no column pictur .--image-column.: the columns are photo, "),
        ({"image_column": "id"}, "the column id .--image-column. holds int64, and no bytes"),
        ({"id_column": "name"}, "no column name .--id-column.: the columns are photo, thumb, id"),
    ],
)
def test_columns_that_fit_no_file_are_refused_where_nothing_is_labelled_yet(
    lake: Path, columns: dict[str, Any], error: str
) -> None:
    with pytest.raises(InputError, match=f"the first Parquet file: {error}"):
        plan_shards(str(lake), **columns)
    known = consume_into_known(
        [Objects(digest_versions([(str(lake / "gone.parquet"), "")]))], lambda: iter([])
    )
    assert "pairs.parquet" in names(plan_shards(str(lake), known=known, **columns))
    write(lake / "fits.parquet", pictur=[jpeg()], name=["a"])
    if columns != {"image_column": "id"}:
        assert "fits.parquet" in names(plan_shards(str(lake), **columns))


def test_a_plan_of_an_earlier_version_names_no_columns(lake: Path, tmp_path: Path) -> None:
    shards = list(plan_shards(str(lake)).shards)
    old = table_of_shards(shards).drop_columns(["image_column", "id_column"])
    pq.write_table(old, tmp_path / "plan.parquet")
    assert list(write_shards(read_plan_tables(str(tmp_path / "plan.parquet")))) == shards


def test_an_input_without_images_names_its_columns(lake: Path) -> None:
    for source in (lake / "00001.parquet", lake / "other"):
        with pytest.raises(InputError) as raised:
            plan_shards(str(source))
        assert "nothing to label" in str(raised.value)
        assert "--image-column" in str(raised.value)
        assert ("key, embedding, sha256" if source.suffix else "image_id, shard") in str(
            raised.value
        )


def test_files_that_cannot_be_looked_at_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "MOST_FOOTER_BYTES", 2000)
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text.parquet").write_text("no data")
    write(tmp_path / "wide.parquet", **{f"c{n}": [1] for n in range(200)})
    found = plan_shards(str(tmp_path))
    assert len(found.shards) == 4
    assert found.left_out == found.image_columns == {}


def test_entries_of_a_list_have_rows(lake: Path) -> None:
    (lake / "list.txt").write_text("00000.parquet\nphotos.parquet\n")
    statuses = [
        row["status"] for s in plan_shards(str(lake / "list.txt")).shards for row in encoded(s)
    ]
    assert statuses == ["empty_shard", "ok"]


@pytest.fixture
def served(lake: Path) -> Iterator[str]:
    with served_files(lake) as address:
        yield address


def test_a_file_on_the_web_is_not_copied_for_a_look(served: str) -> None:
    (shard,) = plan_shards(f"{served}/00000.parquet", format="parquet").shards
    (row,) = encoded(shard)
    assert row["status"] == "empty_shard"


@pytest.mark.parametrize(("limit", "planned"), [(2, 2), (5, 5), (7, 7)])
def test_limit_cuts_the_images_of_lists(limit: int, planned: int, tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", images=[[jpeg()] * 4, [], None])
    (shard,) = plan_shards(str(tmp_path), limit=limit).shards
    assert shard.limit == planned
    assert len(encoded(shard)) == min(limit, 6)


def test_damaged_footers_never_end_the_process_that_plans(tmp_path: Path) -> None:
    """Arrow ends a process that asks a damaged footer for some of its parts."""
    write(
        tmp_path / "p.parquet",
        image=[{"bytes": jpeg(), "path": "x"}],
        l=[[b"a"]],
        d=pa.array([b"a"]).dictionary_encode(),
    )
    data = (tmp_path / "p.parquet").read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    random = np.random.default_rng(int.from_bytes(data[-8:-4], "little"))
    for number in range(300):
        damaged = bytearray(data)
        for place in random.integers(footer, len(data) - 4, 1 + number % 4):
            damaged[place] = random.integers(256)
        (tmp_path / f"{number}.parquet").write_bytes(damaged)
    found = plan_shards(str(tmp_path))
    assert len(found.shards) + found.left_out.get(NO_IMAGE_COLUMN, 0) == 301


def test_the_column_is_chosen_by_values_and_named_exactly(tmp_path: Path) -> None:
    """The first names are those of bytes that are no images."""
    for number in range(3):
        columns = {"content": [b"\x93NUMPY" * 9] * 2, "frame": [jpeg(number), jpeg()]}
        write(tmp_path / f"{number}.parquet", **columns)
    found = plan_shards(str(tmp_path))
    assert found.image_columns == {
        "column frame in the first, chosen from content, frame by its values": 3
    }
    rows = [row for shard in found.shards for row in encoded(shard)]
    assert {row["encoded"] for row in rows} == {jpeg(0), jpeg(1), jpeg(2)}


def test_a_file_that_breaks_while_its_column_is_chosen_is_planned(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", photo=[jpeg()], scan=[jpeg(1)])
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:200] = bytes(196)  # pages, not the footer
    (tmp_path / "a.parquet").write_bytes(content)
    found = plan_shards(str(tmp_path))
    assert found.image_columns == {"one of the columns photo, scan": 1}
    assert len(found.shards) == 1
