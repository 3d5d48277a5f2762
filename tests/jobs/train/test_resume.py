"""A training is not taken up from a file that is not as it was saved."""

from pathlib import Path

import pytest
import torch

from jobs.cli import main


@pytest.mark.parametrize("content", [b"", b"PK\3\4" + b"x" * 99, None, {"step": 5}, [1]])
def test_what_was_saved_is_damaged(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    options = ["--steps", "9", "--evaluate-images", "1", "--weights", "random"]
    assert main(["train", str(tmp_path), "--resume", *options]) == 1
    said = capsys.readouterr().err
    assert f"{file} is damaged, or of a training with other options" in said
    assert "begin anew without --resume" in said and said.count("\n") == 1
