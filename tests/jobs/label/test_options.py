"""Wrong options of `label` are refused."""

from pathlib import Path

import pytest

from jobs.cli import main


def test_unknown_machine_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["label", "photos", "labels", "--model", "shapes-tiny"]
    assert main([*command, "--instance-type", "abacus"]) == 2
    assert "the table has g5.xlarge" in capsys.readouterr().err
    assert main([*command, "--instance-type", "g5.xlarge", "--usd-per-hour", "1"]) == 2
    assert "give one" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "head"])
def test_cluster_that_does_not_answer_is_refused_at_once(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(tmp_path), str(tmp_path / "out")]
    assert main(["label", *places, "--model", "shapes-tiny", "--address", address]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err


PRICE = ["label", "photos", "labels", "--model", "shapes-tiny", "--usd-per-hour"]


def test_a_wrong_price_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRICE, "-1"]) == 2
    assert "--usd-per-hour -1: give a price of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["nan", "inf", "1e999"])
def test_a_price_is_finite(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*PRICE, price])
    assert end.value.code == 2
    assert f"argument --usd-per-hour: {price} is no finite number" in capsys.readouterr().err
