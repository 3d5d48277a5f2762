"""`label` without --model takes the model of OUTPUT, finished or not."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label.model_choice import choose_model
from jobs.label.options import DEFAULT_MODEL, LabelOptions
from jobs.output import paths
from jobs.output.run_documents import write_record
from jobs.submit.submit import Submission
from model.errors import UnknownName
from pipeline.storage.errors import InputError
from tests.support.committed import commit_run, make_target

FIRST, SECOND = "20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa"


def chosen(output: Path, model: str | None = None) -> str | None:
    return choose_model(LabelOptions("in", str(output), model=model)).model


def leave_unfinished_run(output: Path, run_id: str, model: str, weights: str | None = None) -> None:
    names = ("input", "output", "score_threshold", "format", "limit", "relabel")
    options = {**dict.fromkeys(names), "model": model, "weights": weights}
    write_record(str(output), run_id, {"options": options, "model_fingerprint": "f"})
    plan = output / paths.plan_under_way(run_id)
    plan.parent.mkdir(parents=True)
    plan.touch()


def test_an_output_without_labels_has_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(tmp_path / "none") == DEFAULT_MODEL
    assert chosen(tmp_path / "none", "shapes-tiny") == "shapes-tiny"
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "none").exists()


def test_the_newest_run_decides_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_unfinished_run(tmp_path, FIRST, "shapes-tiny")
    assert chosen(tmp_path) == "shapes-tiny"
    assert capsys.readouterr().err.endswith(
        f" --model shapes-tiny, as in the last run of {tmp_path}\n"
    )
    leave_unfinished_run(tmp_path, SECOND, "deformable-detr-with-box-refine")
    assert chosen(tmp_path) == "deformable-detr-with-box-refine"
    assert chosen(tmp_path, "shapes-tiny") == "shapes-tiny"


def test_a_finished_run_decides(tmp_path: Path) -> None:
    commit_run(make_target(tmp_path, SECOND, model="shapes-tiny"), "in", [], {})
    assert chosen(tmp_path) == "shapes-tiny"
    leave_unfinished_run(tmp_path, FIRST, "deformable-detr")  # an older one
    assert chosen(tmp_path) == "shapes-tiny"


def test_weights_of_output_are_named_before_others_are_fetched(tmp_path: Path) -> None:
    leave_unfinished_run(tmp_path, FIRST, "deformable-detr", "random")
    with pytest.raises(InputError, match="holds labels of deformable-detr with --weights random"):
        chosen(tmp_path)
    assert chosen(tmp_path, "deformable-detr") == "deformable-detr"
    leave_unfinished_run(tmp_path, SECOND, "shapes-tiny", "packaged")  # its own
    assert chosen(tmp_path) == "shapes-tiny"


@pytest.mark.parametrize("model", ["python:shutil:rmtree", "hf:stranger/net"])
def test_a_document_of_output_does_not_choose_what_code_runs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_run(make_target(tmp_path / "out", SECOND, model=model), "in", [], {})
    (tmp_path / "in").mkdir()
    assert main(["label", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert f"holds labels of {model}: give --model again" in capsys.readouterr().err
    assert chosen(tmp_path / "out", "shapes-tiny") == "shapes-tiny"


def test_the_detections_of_another_program_name_no_model(tmp_path: Path) -> None:
    commit_run(make_target(tmp_path, SECOND, model="theirs"), "in", [], {})
    assert chosen(tmp_path) == DEFAULT_MODEL
    leave_unfinished_run(tmp_path, FIRST, "shapes-tiny")
    assert chosen(tmp_path) == "shapes-tiny"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("deformable_detr", "deformable-detr"),
        ("Deformable-DETR", "deformable-detr"),
        ("SenseTime/deformable-detr", "deformable-detr"),
        ("shape-tiny", "shapes-tiny"),
        ("shapes_tiny", "shapes-tiny"),
    ],
)
def test_a_misspelt_model_is_guessed_before_anything_is_asked(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address would be refused by the next check, and INPUT does not exist."""
    command = ["label", "nowhere", "out", "--model", given, "--address", "127.0.0.1:9"]
    assert main(command) == 2
    assert f"unknown model '{given}': did you mean {meant}?" in capsys.readouterr().err
    options = LabelOptions("s3://b/in", "s3://b/out", model=given, address="http://h:8265")
    with pytest.raises(UnknownName, match="did you mean"):
        Submission(options, {}, []).check()
