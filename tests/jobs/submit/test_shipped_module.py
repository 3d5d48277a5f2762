"""A user's own detector goes to the cluster with what it imports, and with nothing else."""

import sys
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.submit import shipped_module
from jobs.submit.shipped_module import modules_of_model, print_shipped, ship_modules

MINE = """
import json

import numpy as np

from {prefix}_package import deep
import model.config


def make(device):
    import {prefix}_helper
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the command runs."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def shipped(model: str, target: Path) -> set[str]:
    ship_modules(modules_of_model(model), target)
    return {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}


def test_a_module_goes_with_all_that_it_imports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        folder,
        {
            "a_mine.py": MINE.format(prefix="a"),
            "a_helper.py": "raise SystemExit('nothing is run')",
            "a_package/__init__.py": "",
            "a_package/deep.py": "import a_mine, a_folder.part",
            "a_package/classes.txt": "cat",
            "a_package/.env": "SECRET=1",
            "a_package/__pycache__/deep.cpython-311.pyc": "",
            "a_folder/part.py": "def make(:",
            "a_folder/private.txt": "",
            "unrelated.py": "",
            "photo.jpg": "",
        },
    )
    target = tmp_path / "sent"
    assert shipped("python:a_mine:make", target) == {
        "a_mine.py",
        "a_helper.py",
        "a_package/__init__.py",
        "a_package/deep.py",
        "a_package/classes.txt",
        "a_folder/part.py",
    }
    assert (target / "a_mine.py").read_text() == (folder / "a_mine.py").read_text()
    print_shipped("python:a_mine:make", modules_of_model("python:a_mine:make"))
    line = capsys.readouterr().err
    assert "sent with the job for --model python:a_mine:make: a_mine.py, " in line
    assert "a_package/ (3 files)" in line


@pytest.mark.parametrize(
    "model", ["python:b_absent.part:make", "python:numpy:make", "python:sys:a"]
)
def test_what_is_installed_or_absent_is_not_sent(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert modules_of_model(model) == []
    print_shipped(model, [])
    assert f"--model {model} is no module of this folder" in capsys.readouterr().err


def test_other_models_send_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for model in (None, "detr", "hf:facebook/detr-resnet-50"):
        assert modules_of_model(model) == []
        print_shipped(model, [])
    assert capsys.readouterr().err == ""


def test_modules_that_are_too_large_are_refused_before_anything_is_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped_module, "MOST_BYTES", 1000)
    write(folder, {"c_package/__init__.py": "", "c_package/weights.bin": "x" * 2000})
    arguments = ["submit", "s3://b/in", "s3://b/out", "--address", "http://127.0.0.1:1"]
    assert main([*arguments, "--model", "python:c_package:make"]) == 2
    error = capsys.readouterr().err
    assert "c_package/weights.bin: give weights as --weights with a URL" in error
    assert main([*arguments, "--model", "python:c_package"]) == 2
    assert "give python:package.module:function" in capsys.readouterr().err
    assert "c_package" not in sys.modules
