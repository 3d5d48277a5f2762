"""Wheels for a machine without a network: which, cut into parts, and put together there."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from jobs.bench import wheels
from jobs.bench.wheels import (
    BARE_MACHINE,
    PLATFORMS,
    download_wheels,
    find_needed,
    main,
    pin_versions,
    read_installed,
)


def write_wheel(path: Path) -> None:
    """A package `tiny` of 2.5 MB that does not compress."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny/__init__.py": b"answer = 42\n",
        "tiny/weights.bin": os.urandom(2_500_000),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, data)


def test_what_is_printed_joins_and_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(pins: Sequence[str], folder: Path, python: str) -> None:
        write_wheel(folder / "tiny-1.0-py3-none-any.whl")

    monkeypatch.setattr(wheels, "download_wheels", made)
    folder, moved, site = tmp_path / "parts", tmp_path / "moved", tmp_path / "site"
    folder.mkdir()
    (folder / "wheels.tar.007").write_bytes(b"of an earlier tar")
    assert main([str(folder), "--part-mb", "1"]) == 0
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sorted(sizes) == ["wheels.tar.000", "wheels.tar.001", "wheels.tar.002"]
    assert max(sizes.values()) == sizes["wheels.tar.000"] == 10**6
    folder.rename(moved)
    printed = capsys.readouterr().out.splitlines()
    assert "2.5 MB in 3 parts" in printed[3]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    there = subprocess.run(
        ["bash", "-c", f"{printed[-1]} && python3 -c 'import tiny; print(tiny.__file__)'"],
        cwd=moved,
        env=os.environ | {"SITE": str(site), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(site / "tiny" / "__init__.py")


def test_what_the_machine_has_is_left_alone(tmp_path: Path) -> None:
    needed = find_needed(read_installed(BARE_MACHINE), "3.12")
    assert needed >= {"aiobotocore", "botocore", "duckdb", "ray", "s3fs"}
    assert needed >= {"aiohttp-cors", "opencensus"}, "of ray[default]"
    assert not needed & {"detr-batch", "fsspec", "numpy", "pyarrow", "pytest", "torch"}
    pins = pin_versions(needed, "3.12")
    assert len(pins) == len(needed) and all("==" in pin for pin in pins)

    listed = tmp_path / "list.txt"
    listed.write_text("# pip list\ntorch==2.11.0+cu130\n\nTorchVision\nS3FS==1\nAIOHTTP_cors==1\n")
    installed = read_installed(listed)
    assert installed == {"aiohttp-cors", "s3fs", "torch", "torchvision"}
    needed = find_needed(installed, "3.12")
    assert needed >= {"execnet", "hypothesis", "numpy", "pytest", "pytest-xdist", "ray"}
    assert not needed & {"aiohttp-cors", "s3fs", "torch", "triton"}


def test_numpy_is_that_of_the_machines_python() -> None:
    (old,), (new,) = pin_versions(["numpy"], "3.11"), pin_versions(["numpy"], "3.12")
    assert old != new
    with pytest.raises(ValueError, match="no version of parrot"):
        pin_versions(["numpy", "parrot"], "3.12")


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, listed = tmp_path / "taken", tmp_path / "list.txt"
    folder.mkdir()
    (folder / "wheels.tar.old").touch()
    listed.write_text("numpy\n")
    for arguments, said in (
        ([str(folder)], "has other files in it (wheels.tar.old)"),
        ([str(tmp_path / "new"), "--installed", str(listed)], "lacks torch"),
        ([str(tmp_path / "new"), "--installed", str(tmp_path / "absent")], "No such file"),
        ([str(tmp_path / "new"), "--part-mb", "0"], "more than 0"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_packages_without_a_wheel_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"CPython 3\.12.*duckdb==0\.0.*ray==0\.0"):
        download_wheels(["duckdb==0.0", "ray==0.0"], tmp_path, "3.12")
    monkeypatch.setattr(wheels, "pin_versions", lambda names, python: ["ray==0.0"])
    assert main([str(tmp_path / "parts")]) == 1
    error = capsys.readouterr().err
    assert "ray==0.0" in error and error.count("\n") == 1


@pytest.mark.slow
def test_everything_is_to_be_had(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    assert main([str(folder)]) == 0
    parts = sorted(folder.iterdir())
    assert all(part.stat().st_size <= 60 * 10**6 for part in parts)
    whole = BytesIO(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=whole) as archive:
        found = {name: parse_wheel_filename(name) for name in archive.getnames()}
    taken = {*cpython_tags((3, 12), platforms=PLATFORMS)}
    taken.update(compatible_tags((3, 12), "cp312", PLATFORMS))
    for wheel, (_, _, _, tags) in found.items():
        assert tags & taken, wheel
    needed = find_needed(read_installed(BARE_MACHINE), "3.12")
    assert {name for name, *_ in found.values()} == needed
