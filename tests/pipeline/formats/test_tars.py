"""Every image of a tar is one row, however the tar was written: nothing is passed over silently."""

import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.formats.hidden import is_hidden
from tests.pipeline.formats.tar_samples import (
    PACKED,
    A,
    B,
    C,
    Read,
    hard,
    outcomes,
    soft,
    tar_bytes,
    without_end,
)

needs_tar = pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(outcomes, tmp_path / "t.tar")


@needs_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tars_of_gnu_tar_are_read_whole(format: str, read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "d").mkdir(parents=True)
    (folder / "d/a.jpg").write_bytes(A)
    os.link(folder / "d/a.jpg", folder / "d/b.jpg")
    os.symlink("d/a.jpg", folder / "c.jpg")
    os.symlink("d", folder / "e")
    (folder / "0001").write_bytes(B)
    long_name = f"{'x' * 90}.jpg"
    if format not in ("v7", "ustar"):
        long_name = f"{'y' * 60}/{'x' * 150}.jpg"
        (folder / long_name).parent.mkdir()
    (folder / long_name).write_bytes(C)
    if format != "v7":
        os.mkfifo(folder / "f.jpg")
    command = ["tar", "-c", f"--format={format}", "--sort=name", "-C", str(folder), "."]
    found = read(subprocess.run(command, capture_output=True, check=True).stdout)
    expected = {"d/a": A, "d/b": A, "c": A, "0001": B, long_name.removesuffix(".jpg"): C}
    assert {name.removeprefix("./"): value for name, value in found.items()} == expected


@needs_tar
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_sparse_files_of_gnu_tar_are_unfolded(version: str, read: Read, tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(A)
        file.seek(1 << 20)
        file.write(B)
    with (tmp_path / "bomb.jpg").open("wb") as file:
        file.truncate(1 << 40)
    format = ["--format=oldgnu"] if version == "old" else [f"--sparse-version={version}"]
    format += [] if version == "old" else ["--format=posix"]
    command = ["tar", "-cS", *format, "-C", str(tmp_path), "a.jpg", "bomb.jpg"]
    found = read(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["a"] == (tmp_path / "a.jpg").read_bytes()
    assert found["bomb"] == f"too_large: {1 << 40} bytes are more than {256 << 20}"


@needs_tar
def test_volumes_of_gnu_tar_miss_no_image_silently(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(A + bytes(15_000))
    (tmp_path / "b.jpg").write_bytes(B)
    volumes = [tmp_path / "1.tar", tmp_path / "2.tar", tmp_path / "3.tar"]
    command = ["tar", "-cM", "-L", "10", *(f"-f{volume}" for volume in volumes)]
    subprocess.run([*command, "a.jpg", "b.jpg"], cwd=tmp_path, check=True, capture_output=True)
    first = read(volumes[0].read_bytes())
    assert [text[:13] for text in first.values()] == ["corrupt_shard"]
    second = read(volumes[1].read_bytes())
    assert "another volume" in second["a"]


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_archives_that_follow_one_another_are_read(
    pack: Callable[[bytes], bytes], read: Read
) -> None:
    first, second, third = (
        tar_bytes((name, data)) for name, data in (("a.jpg", A), ("b.jpg", B), ("c.jpg", C))
    )
    links = tar_bytes(hard("d.jpg", "a.jpg"), format=tarfile.PAX_FORMAT)
    expected = {"a": A, "b": B, "c": C, "d": A}
    assert read(pack(first + second + bytes(1 << 20) + third + links)) == expected
    assert read(b"".join(pack(part) for part in (first, second, third, links))) == expected
    assert read(pack(without_end(first) + bytes(512)) + pack(second)) == {"a": A, "b": B}
    assert read(pack(without_end(first)) + pack(second)) == {"a": A, "b": B}
    assert read(pack(first[:700]) + pack(first[700:] + second)) == {"a": A, "b": B}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_what_follows_the_end_without_a_meaning_costs_nothing(
    pack: Callable[[bytes], bytes], read: Read
) -> None:
    whole = tar_bytes(("a.jpg", A))
    assert read(pack(whole + bytes(3 << 20))) == {"a": A}
    assert read(pack(whole + b"garbage " * 999)) == {"a": A}
    assert read(pack(whole) + bytes(100)) == {"a": A}
    assert read(pack(whole) + b"garbage " * 999) == {"a": A}
    assert read(pack(without_end(whole) + bytes(600))) == {"a": A}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_damage_is_told_wherever_it_is(pack: Callable[[bytes], bytes], read: Read) -> None:
    first, second = tar_bytes(("a.jpg", A)), tar_bytes(("b.jpg", B))
    damaged = b"x" + second[1:]
    blank = tar_bytes(("a.jpg", A), ("b.jpg", B), ("c.jpg", C))
    start = blank.index(b"b.jpg")
    cases = {
        "header of a second archive": pack(first + damaged),
        "header of zeros": pack(blank[:start] + bytes(512) + blank[start + 512 :]),
        "header": pack(blank[:start] + b"y" * 512 + blank[start + 512 :]),
        "cut second archive": pack(first + second[:900]),
    }
    if pack is not bytes:
        packed = pack(first + os.urandom(4000))
        cases["cut"] = pack(first) + packed[:-1000]
        cases["cut second member"] = pack(first) + pack(second)[:-40]
        cases["no more of its kind"] = pack(without_end(first)) + b"garbage " * 99
    if pack is PACKED["gzip"]:
        cases["checksum"] = pack(first)[:-8] + b"12345678"
    for case, content in cases.items():
        found = list(read(content).values())
        assert found[0] == A, case
        assert found[-1][:13] == "corrupt_shard", case


def test_first_bytes_decide_where_a_name_has_no_extension(read: Read) -> None:
    content = tar_bytes(
        ("000001", A),
        ("d.x/3f2a", B),
        ("LICENSE", b"Permission is hereby granted"),
        ("empty", b""),
        ("inner", tar_bytes(("x.jpg", C))),
        ("inner.tar", tar_bytes(("x.jpg", C))),
        ("a.bin", C),
        ("a.json", b"{}"),
        ("a.npy", C),
        ("broken.jpg", b"text"),
        ("d", tarfile.DIRTYPE, ""),
    )
    assert read(content) == {"000001": A, "d.x/3f2a": B, "broken": b"text"}


def test_hidden_members_are_left_out(read: Read) -> None:
    names = ["._a.jpg", "__MACOSX/a.jpg", "__MACOSX/._a.jpg", ".thumbs/a.jpg", "d/.DS_Store",
             "./.a.jpg", "a/.b/c/d.jpg", ".0001"]  # fmt: skip
    content = tar_bytes(*((name, A) for name in names), ("./a.jpg", B), ("_x/../_b.jpg", C))
    links = tar_bytes(soft(".c.jpg", "a.jpg"), soft("d.jpg", ".thumbs/a.jpg"))
    assert read(content + links) == {"a": B, "_x/../_b": C, "d": A}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", False), ("./a.jpg", False), ("../a.jpg", False), ("a/./b/../c.jpg", False),
        ("/a.jpg", False), ("_a/_b.jpg", False), ("", False), ("a/", False), ("MACOSX/a", False),
        (".a", True), ("a/.b/c", True), ("/.a/b", True), ("./.a", True), ("..a.jpg", True),
        ("__MACOSX/a", True), ("a/__MACOSX/b/c", True), (".a/", True), ("__MACOSX", False),
    ],
)  # fmt: skip
def test_hidden_paths(path: str, expected: bool) -> None:
    assert is_hidden(path) == expected


def test_unusual_entries(read: Read, tmp_path: Path) -> None:
    """Folders that look like files, absolute names, sizes in base 256, names that are not UTF-8."""
    old_folder = tarfile.TarInfo("folder.jpg/")
    old_folder.type = tarfile.REGTYPE
    big = tarfile.TarInfo("/root/base256.jpg")
    big.size = 9 << 30
    unknown = tarfile.TarInfo("unknown.jpg")
    unknown.type, unknown.size = b"8", len(A)
    blocks = [
        old_folder.tobuf(tarfile.GNU_FORMAT),
        unknown.tobuf(tarfile.GNU_FORMAT) + A.ljust(-(-len(A) // 512) * 512, b"\0"),
        tar_bytes(("caf\udce9.jpg", B), format=tarfile.GNU_FORMAT),
        tar_bytes(("na\udcefve.jpg", B), format=tarfile.PAX_FORMAT),
        tar_bytes(soft("link.jpg", "caf\udce9.jpg"), soft("lost.jpg", "\udce9")),
        tar_bytes(("/root/a.jpg", C), soft("/root/b.jpg", "a.jpg"), soft("c.jpg", "/root/a.jpg")),
        tar_bytes(("../up/a.jpg", C), soft("../up/b.jpg", "a.jpg")),
        big.tobuf(tarfile.GNU_FORMAT),
    ]
    found = read(b"".join(blocks))
    assert found.pop("broken-after-9").startswith("corrupt_shard")
    assert "too_large" in found.pop("/root/base256")
    assert "\\xe9" in found.pop("lost")
    assert found == {
        "unknown": A,
        "caf\\xe9": B,
        "na\\xefve": B,
        "link": B,
        "/root/a": C,
        "/root/b": C,
        "c": C,
        "../up/a": C,
        "../up/b": C,
    }


def test_empty_tars_and_files_that_are_none(read: Read) -> None:
    for content in (bytes(1024), bytes(10240), gzip.compress(bytes(1024))):
        assert read(content) == {}
    for content in (A, b"PK\x03\x04" + bytes(600), gzip.compress(A), gzip.compress(b"")):
        (text,) = read(content).values()
        assert text.startswith("corrupt_shard: broken tar: ")


def test_plain_tar_whose_first_name_looks_compressed_is_plain(read: Read) -> None:
    for name in ("BZh9.jpg", "]", "BZh"):
        assert list(read(tar_bytes((name, A))).values()) == [A]


def test_decoders_have_a_limit_of_memory(read: Read) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 64 << 20}]
    content = tar_bytes(("a.jpg", A))
    assert read(lzma.compress(content, filters=filters)) == {"a": A}
    assert read(lzma.compress(content, format=lzma.FORMAT_ALONE)) == {"a": A}
    huge = bytearray(lzma.compress(content, format=lzma.FORMAT_ALONE))
    huge[1:5] = (0xC0000000).to_bytes(4, "little")  # a dictionary of 3 GiB
    (text,) = read(bytes(huge)).values()
    assert "takes more than 1024 MiB of memory: compress it with a smaller dictionary" in text


def test_headers_that_need_much_memory_are_damage(read: Read) -> None:
    """The list of the pieces of a sparse file may go on for ever."""
    info = tarfile.TarInfo("b.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more pieces follow
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = (b"%011o\0%011o\0" % (512, 512)) * 21 + b"\x01"
    first = tar_bytes(("a.jpg", A))
    found = read(without_end(first) + bytes(header) + more.ljust(512, b"\0") * 10_000)
    assert list(found) == ["a", "broken-after-1"]


def test_too_many_global_attributes_are_damage(read: Read) -> None:
    """tarfile keeps them all."""
    names = (f"key{number}" for number in range(1100))
    several = b"".join(
        without_end(tar_bytes(format=tarfile.PAX_FORMAT, pax_headers={name: "x"})) for name in names
    )
    found = read(without_end(tar_bytes(("a.jpg", A))) + several + tar_bytes(("b.jpg", B)))
    assert list(found) == ["a", "broken-after-1"]


def test_samples_of_webdataset_stay_in_order(read: Read) -> None:
    members = [(f"{n:04}.{end}", data) for n in range(3) for end, data in
               (("cls", b"1"), ("jpg", A), ("json", b"{}"))]  # fmt: skip
    assert list(read(tar_bytes(*members))) == ["0000", "0001", "0002"]


def test_name_of_a_file_may_end_with_a_slash(read: Read) -> None:
    content = tar_bytes(("a.jpg", A)).replace(b"a.jpg\0", b"a.jpg/", 1)
    header = bytearray(content[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert read(bytes(header) + content[512:]) == {"a": A}
