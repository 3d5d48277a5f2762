"""Which columns are carried along, and of which types; and what is refused before any work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.carry.columns import Carry, Column
from pipeline.formats.sidecars import name_json_columns
from pipeline.plan import list_names
from pipeline.plan.carry_choice import parse_carry
from pipeline.plan.digests import Objects, consume_into_known, digest_versions
from pipeline.plan.plan import plan_shards
from pipeline.plan.shards import Shards, read_plan_tables, read_shards_of_group, write_shards
from pipeline.schema import Member
from pipeline.storage.files import InputError
from tests.support.carrying import carried
from tests.support.parquet_files import write
from tests.support.samples import jpeg, write_tar

PHOTO = jpeg(1)


def rows(**columns: pa.Array) -> pa.Table:
    (count,) = {len(column) for column in columns.values()}
    return pa.table({"image": [PHOTO] * count, **columns})


@pytest.mark.parametrize(
    ("column", "is_other_type_offered"),
    [(pa.array([b"x"]), True), (pa.array([{"a": 1}]), False), (pa.array([[[1]]]), False)],
)
def test_another_type_is_offered_for_values_that_have_one_alone(
    column: pa.Array, is_other_type_offered: bool, tmp_path: Path
) -> None:
    write(tmp_path / "p.parquet", rows(m=column))
    with pytest.raises(InputError, match="--carry m: it is") as refusal:
        types_of(tmp_path, "m")
    assert ("m:string" in str(refusal.value)) is is_other_type_offered


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([{"a": 1}]), "string"),
        (pa.array([[{"a": 1}]]), "string[]"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "string[]"),
        (pa.array([["x"]]), "string"),
        (pa.array(["x"]), "string[]"),
        (pa.array([True]), "timestamp"),
    ],
)
def test_types_that_no_value_can_have_are_refused(
    column: pa.Array, named: str, tmp_path: Path
) -> None:
    write(tmp_path / "p.parquet", rows(m=column))
    (shard,) = plan_shards(str(tmp_path)).shards
    as_wanted = Carry((Column("m", parse_carry(f"m:{named}")[0].type or pa.null()),))
    assert carried(replace(shard, carry=as_wanted)) == [{"m": None, "not_carried": 1}]
    with pytest.raises(InputError, match=r"--carry m:.* in .*p.parquet, of which no value can be"):
        types_of(tmp_path, f"m:{named}")


def types_of(source: Path, carry: str) -> dict[str, str]:
    return plan_shards(str(source), carry=carry).shards.carry.as_document()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image_id", "`images` has a column image_id of its own"),
        ("Width", "`images` has a column width of its own"),
        ("a,b,A", "names A twice"),
        ("run", "columns of detr-batch's own views"),
        ("filename", "columns of detr-batch's own views"),
        ("compact_part", "columns of detr-batch's own views"),
        ("a,,b", "'' is no name of a column"),
        ("", "'' is no name of a column"),
        ("a\nb", "is no name of a column"),
        ("x" * 200, "is no name of a column"),
        ("a:flaot", "flaot is no type: string, bool"),
        ("a:int64[][]", "int64[][] is no type"),
        (",".join(map(str, range(65))), "names 65 columns: give 64 at most"),
    ],
)
def test_names_that_cannot_be_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse_carry(text)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_names_are_parsed() -> None:
    found = parse_carry(" split , score:float, tags:string[],a:b:int8")
    assert [(one.name, one.type) for one in found] == [
        ("split", None),
        ("score", pa.float64()),
        ("tags", pa.list_(pa.field("element", pa.string()))),
        ("a:b", pa.int8()),
    ]


def test_types_of_all_files_are_brought_together(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(n=pa.array([1], pa.int8()), s=pa.array([None])))
    write(tmp_path / "b.parquet", rows(n=pa.array([1], pa.uint16()), s=pa.array(["x"])))
    write(tmp_path / "c.parquet", rows(n=pa.array([0.5], pa.float32())))
    assert types_of(tmp_path, "s,n") == {"s": "string", "n": "float64"}
    assert types_of(tmp_path, "n:string") == {"n": "string"}
    write(tmp_path / "d.parquet", rows(n=pa.array(["many"])))
    with pytest.raises(InputError, match=r"float64 in .*a.parquet and string in .*d.parquet: give"):
        types_of(tmp_path, "n")


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    with pytest.raises(InputError, match=r"--carry split: INPUT has image files alone"):
        types_of(tmp_path, "split")
    write(tmp_path / "table.parquet", pa.table({"n": [1]}))
    with pytest.raises(InputError, match="--carry n: INPUT has image files alone"):
        types_of(tmp_path, "n")
    (tmp_path / "table.parquet").unlink()
    write_tar(tmp_path / "t.tar", {"a.jpg": PHOTO, "a.json": b'{"caption": "x", "n": 1}'})
    with pytest.raises(InputError, match=r"--carry split: .* theirs are caption, n. One that few"):
        types_of(tmp_path, "caption,split")
    assert types_of(tmp_path, "caption,split:int8") == {"caption": "string", "split": "int8"}
    (tmp_path / "t.tar").unlink()
    write(tmp_path / "p.parquet", rows(n=pa.array([1]), m=pa.array([{"a": 1}])))
    with pytest.raises(InputError, match=r"--carry split: no new Parquet file .*: image, n, m"):
        types_of(tmp_path, "n,split:string")
    with pytest.raises(InputError, match=r"--carry m: it is struct<a: int64> in .*: texts, numb"):
        types_of(tmp_path, "m")
    with pytest.raises(InputError, match=r"--carry image: it is binary in"):
        types_of(tmp_path, "image")


def test_a_night_of_image_files_alone_goes_on(tmp_path: Path) -> None:
    """The lake holds archives with the column, which are all known."""
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": PHOTO, "a.json": b'{"caption": "x"}'})
    (shard,) = plan_shards(str(tmp_path)).shards
    known = consume_into_known(
        [_objects(shard.members)], lambda: iter([pa.array([f"file://{tar}"])])
    )
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    found = plan_shards(str(tmp_path), known=known, carry="caption")
    assert found.known == 1 and len(found.shards) == 1 and not found.shards.carry
    found = plan_shards(str(tmp_path), known=known, carry="caption:string")
    assert not found.shards.carry


def _objects(members: tuple[Member, ...]) -> Objects:
    pairs = ((member.uri, member.etag) for member in members)
    return Objects(digest_versions(pairs), labelled=True, of_input=True)


LIST = pa.table(
    {
        "url": ["b.jpg", "a.jpg", "", "a.jpg", "t.tar", "gone.jpg"],
        "caption": ["é", None, "none", "twice", "all", "lost"],
        "n": pa.array([1, 2, 3, 4, 5, 6], pa.int32()),
        "tags": [["x"], [], None, ["y"], None, ["z", None]],
        "long": ["x" * 70_000, "", "", "", "", ""],
    }
)


def make_list(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(PHOTO)
    write_tar(folder / "t.tar", {"1.jpg": PHOTO, "1.json": b'{"caption": "own"}', "2.jpg": PHOTO})
    return write(folder / "list.parquet", LIST)


def test_a_list_says_what_its_objects_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images of an archive have what the list says of it; each entry is a row as before."""
    monkeypatch.setattr(list_names, "CARRYING_ROWS_AT_ONCE", 2)
    source = make_list(tmp_path)
    plain = plan_shards(str(source)).shards
    shards = plan_shards(str(source), carry="caption,n,tags,long:string").shards
    assert [shard.members for shard in shards] == [shard.members for shard in plain]
    assert shards.carry.as_document() == {
        "caption": "string", "n": "int32", "tags": "string[]", "long": "string",
    }  # fmt: skip
    said = {
        member.uri.rpartition("/")[2]: member.carried
        for shard in shards
        for member in shard.members
    }
    long, none = {"long": None}, {"long": ""}
    assert said == {
        "t.tar": ({"caption": "all", "n": 5, "tags": None, **none}, 0),
        "b.jpg": ({"caption": "é", "n": 1, "tags": ["x"], **long}, 1),
        "a.jpg": ({"caption": None, "n": 2, "tags": [], **none}, 0),
        "gone.jpg": ({"caption": "lost", "n": 6, "tags": ["z", None], **none}, 0),
    }
    shards.write_to(str(tmp_path / "plan.parquet"))
    again = write_shards(read_plan_tables(str(tmp_path / "plan.parquet"), carried=True))
    assert _said(again) == _said(shards)
    assert _said_of(read_shards_of_group(str(again.path), 0, [0])) == _said(shards)[:1]
    assert list(shards.without_carried()) == list(plain)
    assert not shards.without_carried().carry
    assert _said(shards.with_uris(lambda uri: uri)) == _said(shards)


def _said(shards: Shards) -> list[Any]:
    return _said_of(shards)


def _said_of(shards: Any) -> list[Any]:
    return [[member.carried for member in shard.members] for shard in shards]


def test_a_list_is_refused_for_columns_that_it_lacks(tmp_path: Path) -> None:
    source = make_list(tmp_path)
    with pytest.raises(InputError, match=r"split: the list .* its columns are url, caption"):
        plan_shards(str(source), carry="n,split")
    pq.write_table(LIST.append_column("bytes", pa.array([b"x"] * 6)), tmp_path / "bytes.parquet")
    with pytest.raises(InputError, match=r"--carry bytes: it is binary in"):
        plan_shards(str(tmp_path / "bytes.parquet"), "urls", carry="bytes")


def test_a_text_list_carries_what_its_archives_have(tmp_path: Path) -> None:
    make_list(tmp_path)
    text = tmp_path / "list.txt"
    text.write_text("a.jpg\nb.jpg\n")
    with pytest.raises(InputError, match="INPUT has image files alone"):
        plan_shards(str(text), carry="caption")
    text.write_text("a.jpg\nt.tar\n")
    shards = plan_shards(str(text), carry="caption:string").shards
    tar = next(shard for shard in shards if shard.kind == "tar")
    assert [row["caption"] for row in carried(tar)] == ["own", None]


def test_json_names_are_those_of_the_first_samples(tmp_path: Path) -> None:
    names = {f"{n}.jpg": PHOTO for n in range(3)}
    texts = {f"{n}.json": json.dumps({f"k{n}": 1}).encode() for n in range(3)}
    tar = write_tar(tmp_path / "t.tar", {**names, **texts, "broken.json": b"{"})
    rows_of_names = name_json_columns(Member(f"file://{tar}", "", -1), None)
    assert [row["column"] for row in rows_of_names] == ["k0", "k1", "k2"]
