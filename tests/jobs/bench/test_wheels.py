"""Wheels for a machine without a network are chosen here, cut into parts, and joined there."""

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
    """Write the wheel of a package `tiny` with 2.5 MB that do not compress."""
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


def test_the_printed_command_joins_and_installs_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_tiny_wheel(pins: Sequence[str], folder: Path, python: str) -> None:
        write_wheel(folder / "tiny-1.0-py3-none-any.whl")

    monkeypatch.setattr(wheels, "download_wheels", write_tiny_wheel)
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
    installed = subprocess.run(
        ["bash", "-c", f"{printed[-1]} && python3 -c 'import tiny; print(tiny.__file__)'"],
        cwd=moved,
        env=os.environ | {"SITE": str(site), "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert installed.stdout.strip() == str(site / "tiny" / "__init__.py")


def test_packages_that_the_machine_has_are_left_out(tmp_path: Path) -> None:
    needed = find_needed(read_installed(BARE_MACHINE), "3.12")
    assert needed >= {"aiobotocore", "botocore", "duckdb", "ray", "s3fs"}
    assert needed >= {"aiohttp-cors", "opencensus"}, "ray[default] needs these"
    assert not needed & {"detr-batch", "fsspec", "numpy", "pyarrow", "pytest", "torch"}
    pins = pin_versions(needed, "3.12")
    assert len(pins) == len(needed) and all("==" in pin for pin in pins)

    package_list = tmp_path / "list.txt"
    package_list.write_text(
        "# pip list\ntorch==2.11.0+cu130\n\nTorchVision\nS3FS==1\nAIOHTTP_cors==1\n"
    )
    installed = read_installed(package_list)
    assert installed == {"aiohttp-cors", "s3fs", "torch", "torchvision"}
    needed = find_needed(installed, "3.12")
    assert needed >= {"execnet", "hypothesis", "numpy", "pytest", "pytest-xdist", "ray"}
    assert not needed & {"aiohttp-cors", "s3fs", "torch", "triton"}


def test_versions_fit_the_python_of_the_machine() -> None:
    (old,), (new,) = pin_versions(["numpy"], "3.11"), pin_versions(["numpy"], "3.12")
    assert old != new
    with pytest.raises(ValueError, match="no version of parrot"):
        pin_versions(["numpy", "parrot"], "3.12")


def test_every_mistake_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, package_list = tmp_path / "taken", tmp_path / "list.txt"
    folder.mkdir()
    (folder / "wheels.tar.old").touch()
    package_list.write_text("numpy\n")
    for arguments, message in (
        ([str(folder)], "has other files in it (wheels.tar.old)"),
        ([str(tmp_path / "new"), "--installed", str(package_list)], "lacks torch"),
        ([str(tmp_path / "new"), "--installed", str(tmp_path / "absent")], "No such file"),
        ([str(tmp_path / "new"), "--part-mb", "0"], "more than 0"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
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
def test_every_needed_wheel_can_be_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    assert main([str(folder)]) == 0
    parts = sorted(folder.iterdir())
    assert all(part.stat().st_size <= 60 * 10**6 for part in parts)
    whole = BytesIO(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=whole) as archive:
        found = {name: parse_wheel_filename(name) for name in archive.getnames()}
    accepted = {*cpython_tags((3, 12), platforms=PLATFORMS)}
    accepted.update(compatible_tags((3, 12), "cp312", PLATFORMS))
    for wheel, (_, _, _, tags) in found.items():
        assert tags & accepted, wheel
    needed = find_needed(read_installed(BARE_MACHINE), "3.12")
    assert {name for name, *_ in found.values()} == needed
