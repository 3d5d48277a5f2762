"""--relabel drops no labels that it does not replace."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label.options import LabelOptions
from jobs.label.planning import plan_images, plan_request
from jobs.output.catalog import read_catalog
from jobs.output.known_objects import LabelRequest, known_objects
from pipeline.plan.plan import plan_shards
from pipeline.storage import retries
from pipeline.storage.files import InputError, canonical_url
from tests.support.labelled import Labelled, write_run
from tests.support.samples import jpeg, write_tar
from tests.support.web import served_files

RUN = "20260101T000000Z-aaaaaa"
MODEL = ("--model", "shapes-tiny", "--dry-run", "--probe", "0")


def label_by_hand(source: Path, output: Path) -> None:
    """Make an OUTPUT that has labels of all objects of `source`."""
    shards = plan_shards(str(source)).shards
    images = [Labelled(member.uri) for shard in shards for member in shard.members]
    write_run(output, images, ("",), RUN, source=canonical_url(str(source)))
    shards.write_to(str(output / "_runs" / RUN / "plan.parquet"))


def test_labels_of_other_formats_are_not_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, output = tmp_path / "lake", tmp_path / "out"
    lake.mkdir()
    (lake / "a.jpg").write_bytes(jpeg())
    write_tar(lake / "t.tar", {"b.jpg": jpeg(1)})
    label_by_hand(lake, output)
    command = ["label", str(lake), str(output), *MODEL, "--relabel"]
    assert main([*command, "--format", "tar"]) == 2
    assert "would drop the labels of 1 objects of other formats" in capsys.readouterr().err
    assert main(command) == 0
    (lake / "a.jpg").unlink()  # what is gone goes, and is named
    assert main([*command, "--format", "tar"]) == 0


def test_labels_of_hosts_that_do_not_answer_are_not_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 2.0)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    lines = tmp_path / "list.txt"
    output = tmp_path / "out"
    command = ["label", str(lines), str(output), *MODEL, "--relabel"]
    with served_files(tmp_path) as address:
        lines.write_text(f"{address}/a.jpg\na.jpg\n")
        label_by_hand(lines, output)
        assert main(command) == 0
    assert main(command) == 1
    assert "drop the labels of 1 listed objects whose stores do not" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "file", "list", "above"])
def test_objects_that_runs_over_another_input_labelled_are_labelled_again(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, output = tmp_path / "lake", tmp_path / "out"
    (lake / "sub").mkdir(parents=True)
    (lake / "sub" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text("lake/sub/a.jpg\n")
    label_by_hand(lake, output)
    part = {"folder": lake / "sub", "file": lake / "sub/a.jpg", "list": tmp_path / "list.txt"}
    options = LabelOptions(str(part.get(kind, tmp_path)), str(output), relabel=True)
    source = canonical_url(options.input)
    wanted = LabelRequest(source, "made-by-hand", 0.0, "f00d", relabel=True)
    catalog = read_catalog(str(output))
    found = plan_images(plan_request(options), known_objects(str(output), wanted, catalog))
    (shard,) = found.shards
    assert [member.uri for member in shard.members] == [f"file://{lake}/sub/a.jpg"]
    assert (found.again, found.known, len(found.gone)) == (1, 0, 0)
    with pytest.raises(InputError, match=f"--relabel replaces the labels of INPUT {source} alone"):
        known_objects(str(output), replace(wanted, fingerprint="other"), catalog)
