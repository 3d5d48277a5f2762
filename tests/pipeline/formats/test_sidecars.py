"""The json members of a tar reach the images of their keys, wherever they lie."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import sidecars
from pipeline.formats.read import read_rows
from pipeline.formats.tars import read_tar
from pipeline.plan.plan import plan_shards
from tests.support.carrying import carried_from
from tests.support.samples import jpeg, write_tar

CARRY = "split:string,wide:int64"
PHOTO = jpeg(1)


def sidecar(number: int) -> bytes:
    return json.dumps({"split": f"s{number}", "wide": number, "more": [1]}).encode()


def members(count: int) -> dict[str, bytes]:
    """Samples of an image and its json, the image first."""
    found: dict[str, bytes] = {}
    for number in range(count):
        found |= {f"a/{number}.jpg": PHOTO, f"a/{number}.json": sidecar(number)}
    return found


def expected(order: list[str]) -> list[dict[str, Any]]:
    numbers = [int(name.removeprefix("a/").split(".")[0]) for name in order if "jpg" in name]
    return [{"split": f"s{n}", "wide": n, "not_carried": 0} for n in numbers]


def test_a_json_is_found_in_any_order_and_rows_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    every = members(8)
    names = list(every)
    reversed_pairs = [name for pair in zip(names[1::2], names[::2], strict=True) for name in pair]
    orders = [names, reversed_pairs, names[::2] + names[1::2], names[1::2] + names[::2]]
    orders += [random.Random(seed).sample(names, len(names)) for _ in range(3)]
    for number, order in enumerate(orders):
        path = write_tar(tmp_path / f"{number}.tar", {name: every[name] for name in order})
        assert carried_from(path, CARRY) == expected(order)
        (plain,) = plan_shards(str(path)).shards
        (carrying,) = plan_shards(str(path), carry=CARRY).shards
        ids = [[row["image_id"] for row in read_rows(shard, 0)] for shard in (plain, carrying)]
        assert ids[0] == ids[1]


def test_a_tar_of_adjacent_members_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    read_all = sidecars.Sidecars._read_all

    def noting(self: sidecars.Sidecars) -> None:
        passes.append(True)
        read_all(self)

    monkeypatch.setattr(sidecars.Sidecars, "_read_all", noting)
    every = members(6)
    names = list(every)
    for order, count in ((names, 0), (names[::2] + names[1::2], 1)):
        path = write_tar(tmp_path / f"{count}.tar", {name: every[name] for name in order})
        (shard,) = plan_shards(str(path), carry=CARRY).shards
        assert len(list(read_tar(shard))) == 6
        assert len(passes) == count


def test_the_second_reading_is_of_the_version_that_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = members(3)
    names = list(every)
    path = write_tar(tmp_path / "t.tar", {name: every[name] for name in names[::2] + names[1::2]})
    (shard,) = plan_shards(str(path), carry=CARRY).shards
    other = {name: every[name] for name in names[::2]} | {
        name: sidecar(100 + number) for number, name in enumerate(names[1::2])
    }
    read_all = sidecars.Sidecars._read_all

    def replacing(self: sidecars.Sidecars) -> None:
        write_tar(tmp_path / "new.tar", other).replace(path)
        read_all(self)

    monkeypatch.setattr(sidecars.Sidecars, "_read_all", replacing)
    assert [row["status"] for row in read_tar(shard)] == ["changed"]


def test_images_of_one_sample_share_its_json(tmp_path: Path) -> None:
    names = ["a/1.left.jpg", "a/1.right.jpg", *(f"a/1.{n}.jpg" for n in range(9))]
    path = write_tar(tmp_path / "t.tar", dict.fromkeys(names, PHOTO) | {"a/1.json": sidecar(1)})
    assert carried_from(path, CARRY) == [{"split": "s1", "wide": 1, "not_carried": 0}] * 11


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        (b"{", 2),
        (b"[1]", 2),
        (b"\xff\xfe", 2),
        (b"[" * 100_000, 2),
        (b'{"split": "a", "wide": ' + b"9" * 5000 + b"}", 2),
        (b'{"split": "' + b"x" * (1 << 20) + b'"}', 2),
        (b'{"split": "' + b"x" * 70_000 + b'", "wide": 3}', 1),
        (b'{"wide": "many"}', 1),
        (b'{"wide": null}', 0),
        (b"{}", 0),
        (b"", 2),
        (None, 0),
    ],
)
def test_a_bad_json_costs_its_values_and_no_image(
    content: bytes | None, lost: int, tmp_path: Path
) -> None:
    bad = {} if content is None else {"a/1.json": content}
    path = write_tar(tmp_path / "t.tar", {**members(1), "a/1.jpg": PHOTO, **bad, "a/2.jpg": PHOTO})
    rows = carried_from(path, CARRY)
    assert [row["not_carried"] for row in rows] == [0, lost, 0]
    assert rows[0]["split"] == "s0" and rows[1]["split"] is None and rows[2]["split"] is None


def test_a_broken_tar_keeps_what_comes_before(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t.tar", members(4)).read_bytes()
    start = whole.index(b"a/3.jpg")
    (tmp_path / "t.tar").write_bytes(whole[: start + 600])
    assert carried_from(tmp_path / "t.tar", CARRY) == [
        *expected([f"a/{n}.jpg" for n in range(3)]),
        {"split": None, "wide": None, "not_carried": 0},
    ]


def test_a_link_has_the_json_of_its_own_key(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, content in members(2).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a/0.jpg"
        archive.addfile(link)
        entry = tarfile.TarInfo("b.json")
        entry.size = len(sidecar(7))
        archive.addfile(entry, io.BytesIO(sidecar(7)))
    found = carried_from(tmp_path / "t.tar", CARRY)
    assert [row["split"] for row in found] == ["s0", "s1", "s7"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all json members first, those that are too many are counted as not carried."""
    monkeypatch.setattr(sidecars, "MOST_KEPT_BYTES", 3 * len(sidecar(0)))
    every = members(6)
    names = list(every)
    path = write_tar(tmp_path / "t.tar", {name: every[name] for name in names[1::2] + names[::2]})
    (shard,) = plan_shards(str(path), carry=CARRY).shards
    rows = list(read_tar(shard))
    assert [row["not_carried"] for row in rows] == [0, 0, 0, 2, 2, 2]
    assert [row["carried"].get("wide") for row in rows] == [0, 1, 2, None, None, None]
