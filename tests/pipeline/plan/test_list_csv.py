"""Lists that are tables in text, as spreadsheets and csv modules write them."""

import csv
import datetime as dt
import io
from pathlib import Path
from typing import Any

import pytest

from pipeline.carry.values import struct_array
from pipeline.plan import list_csv
from pipeline.plan.lists import is_list
from pipeline.plan.plan import plan_shards
from pipeline.storage.files import InputError, open_location
from tests.support.logs import listen
from tests.support.samples import jpeg

HEADER = ["id", "Image URL", "caption", "n", "seen"]
ROWS = [
    ["1", "a.jpg", 'he said "é,\n"', "7", "2021-02-03T04:05:06"],
    ["2", "", "no address", "8", ""],
    ["3", " b.jpg ", "", "", "2021-02-03T04:05:06+01:00"],
    ["4", "c.jpg", "x", "many", "soon"],
    ["5", "d.jpg"],
    ["6", "a.jpg", "again", "9", ""],
]


def write(path: Path, encoding: str = "utf-8", **options: Any) -> Path:
    text = io.StringIO()
    csv.writer(text, **options).writerows([HEADER, *ROWS])
    path.write_bytes(text.getvalue().encode(encoding))
    for name in "abcd":
        (path.parent / f"{name}.jpg").write_bytes(jpeg(1))
    return path


@pytest.mark.parametrize(
    ("name", "encoding", "options"),
    [
        ("list.csv", "utf-8", {}),
        ("list.csv", "utf-8-sig", {"lineterminator": "\n"}),
        ("LIST.CSV", "utf-16", {"quoting": csv.QUOTE_ALL}),
        ("list.tsv", "utf-8", {"delimiter": "\t"}),
        ("list.tsv.csv", "utf-8", {}),
    ],
)
def test_each_row_with_an_address_is_an_object(
    name: str, encoding: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / name, encoding, **options)
    found = plan_shards(str(path), carry="caption,n:int32,seen:timestamp")
    (shard,) = found.shards
    assert found.left_out == {"entries of the list that name an object again": 1}
    assert [member.uri.rpartition("/")[2] for member in shard.members] == [
        "a.jpg", "b.jpg", "c.jpg", "d.jpg",
    ]  # fmt: skip
    said = [member.carried for member in shard.members]
    assert [one and one[1] for one in said] == [0, 0, 2, 0]
    day = dt.datetime(2021, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    assert struct_array([one and one[0] for one in said], shard.carry).to_pylist() == [
        {"caption": 'he said "é,\n"', "n": 7, "seen": day},
        {"caption": None, "n": None, "seen": day - dt.timedelta(hours=1)},
        {"caption": "x", "n": None, "seen": None},
        {"caption": None, "n": None, "seen": None},
    ]
    plain = plan_shards(str(path)).shards
    assert [one.members for one in plain] == [shard.members]


def test_a_table_without_addresses_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert not is_list(*open_location(str(tmp_path / "t.csv"), "INPUT"))
    (tmp_path / "t.csv").write_text("url;split\nhttps://a/b.jpg;c\n")
    with pytest.raises(InputError, match="its first line names a column url, with commas between"):
        plan_shards(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("")
    assert not is_list(*open_location(str(tmp_path / "t.csv"), "INPUT"))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_quote_that_is_not_closed_hides_no_entries(
    suffix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listen(list_csv.__name__, caplog, monkeypatch)
    tab = "\t" if suffix == "tsv" else ","
    rows = ["url,caption", "a.jpg,plain", 'b.jpg,"Open the door', "c.jpg,two", 'd.jpg,said "no"']
    path = tmp_path / f"list.{suffix}"
    path.write_text("\n".join(rows).replace(",", tab) + "\n")
    with pytest.raises(InputError, match=r"line 3 of the list .*is not closed at the end"):
        plan_shards(str(path))
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(1))
    rows[2:] = ['b.jpg,"Open ""the"" door"', 'c.jpg,5 " wide', 'd.jpg,"one\ntwo"']
    path.write_text("\n".join(rows).replace(",", tab) + "\n")
    assert plan_shards(str(path)).shards.images == 4
    assert "rows with line breaks in quoted cells: 1, the first in line 5" in caplog.text


@pytest.mark.parametrize(
    ("text", "carry", "reason"),
    [
        ("url,a\nx.jpg,1\n", "b", "the list .* has no such column; its columns are url, a"),
        ("url,a\n" + "x" * 200_000 + ",1\n", None, "line 2 of the list .*field limit"),
        ('a,url\n"b\n1,x.jpg\n', None, "line 2 of the list .*a quote .*opens a cell"),
        ('url,a\nx.jpg,1\ny.jpg,"b\nz.jpg,"c"\n', None, "line 3 of the list .*not closed"),
        ("url,a\n" + "x" * 2_000_000, None, "a line of the list .* has more than 1,048,576"),
    ],
)
def test_a_bad_table_is_one_line(text: str, carry: str | None, reason: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=reason):
        plan_shards(str(tmp_path / "t.csv"), carry=carry)
