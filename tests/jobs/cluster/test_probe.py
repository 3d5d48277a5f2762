"""The probe reports what is wrong with a node of a cluster before a run, or nothing."""

from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.cluster.probe import PACKAGES, probe
from jobs.output import paths
from pipeline.schema import Member
from pipeline.storage.files import join, list_files, open_location
from pipeline.storage.s3 import S3Files
from tests.support.s3_server import READER

VERSIONS = {name: version(name) for name in PACKAGES}
NOTHING = Member("nothing", "", 0)


def put(url: str) -> Member:
    """Write a small object."""
    fs, path = open_location(url, "INPUT")
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, b"something")
    return Member(url, "", 9)


def locked(output: str) -> str:
    """Make an OUTPUT in which a driver has its lock."""
    put(join(output, paths.LOCK))
    return output


def test_a_node_that_is_as_it_should_be_says_nothing_and_leaves_nothing(bucket: str) -> None:
    output, picture = locked(f"{bucket}/out"), put(f"{bucket}/in/1.png")
    assert probe(VERSIONS, output, picture) is None
    fs, path = open_location(f"{bucket}/out", "OUTPUT")
    assert list(list_files(fs, path)) == [f"{path}/{paths.LOCK}"]


def test_other_versions_are_said(tmp_path: Path) -> None:
    output = locked(str(tmp_path / "out"))
    said = probe({**VERSIONS, "pyarrow": "1.0"}, output, NOTHING)
    assert said is not None
    assert f"has pyarrow {version('pyarrow')}, and the driver 1.0" in said
    assert "has no-such not at all" in (probe({"no-such": "1"}, output, NOTHING) or "")


def test_a_folder_that_is_not_shared_is_said(tmp_path: Path) -> None:
    said = probe(VERSIONS, str(tmp_path / "out"), put(str(tmp_path / "1.png")))
    assert said is not None
    assert "does not see what the driver wrote" in said


def test_input_that_is_another_machines_is_said(tmp_path: Path) -> None:
    output = locked(str(tmp_path / "out"))
    said = probe(VERSIONS, output, Member(str(tmp_path / "1.png"), "", 1))
    assert said is not None
    assert "cannot read INPUT" in said


def test_an_object_that_left_its_bucket_is_a_row_and_no_reason(bucket: str) -> None:
    output = locked(f"{bucket}/out")
    assert probe(VERSIONS, output, Member(f"{bucket}/in/1.png", "", 1)) is None


def test_a_role_that_may_not_write_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output, picture = locked(f"{bucket}/out"), put(f"{bucket}/in/1.png")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    S3Files.clear_instance_cache()
    said = probe(VERSIONS, output, picture)
    S3Files.clear_instance_cache()
    assert said is not None
    assert f"cannot write OUTPUT: {bucket}/out is forbidden" in said


def test_input_that_a_role_may_not_read_is_said(bucket: str) -> None:
    output = locked(f"{bucket}/out")
    said = probe(VERSIONS, output, Member("s3://not-theirs/1.png", "", 1))
    assert said is not None
    assert "cannot read INPUT: s3://not-theirs/1.png is forbidden" in said
