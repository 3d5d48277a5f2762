"""Options that are refused, the price table, and what a report makes of it."""

import csv
from datetime import date
from importlib.resources import files

import pytest

from jobs.cli import main
from jobs.label_options import LabelOptions
from jobs.prices import Price, price_of
from jobs.report import as_text
from jobs.run_record import Tally, report
from pipeline.schema import Receipt
from pipeline.storage import InputError


def test_every_row_of_the_table_is_whole() -> None:
    with (files("infra") / "prices.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["instance_type"] for row in rows}) == len(rows) >= 5
    for row in rows:
        assert 0 < float(row["spot"]) < float(row["on_demand"])
        assert date.fromisoformat(row["read_on"]) <= date.today()
        assert row["source"]
        assert row["region"]


def test_price_names_its_market_and_date() -> None:
    price = price_of("g5.xlarge", spot=False)
    assert price.usd_per_hour == 1.006
    assert price.basis.startswith("g5.xlarge on demand in us-east-1, read on 2026-")
    assert price_of("g5.xlarge", spot=True).usd_per_hour < price.usd_per_hour


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
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", "in", "out", "--model", "shapes-tiny", "--address", address]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err


def test_price_counts_every_machine() -> None:
    options = LabelOptions("photos", "labels", instance_type="g6.xlarge", spot=True)
    one, four = options.price(1), options.price(4)
    assert one
    assert four
    assert four.usd_per_hour == pytest.approx(4 * one.usd_per_hour)
    assert four.basis.startswith("4 x g6.xlarge spot")
    assert LabelOptions("a", "b", usd_per_hour=3.0).price(4) == Price(3.0, "--usd-per-hour")
    assert LabelOptions("a", "b").price(4) is None
    with pytest.raises(InputError, match="no price"):
        LabelOptions("a", "b", instance_type="abacus").price(1)


WORKERS = {"read": 8, "prepare": 1, "detect": 1, "stage": 8}


def test_report_turns_hours_into_usd_per_thousand_images() -> None:
    tally, counts = Tally(), {"ok": 35, "undecodable": 15}
    tally.add(Receipt("a", ("s",), images=40, detections=90, failed={"undecodable": 10}))
    summary = report(tally, counts, 110, workers=WORKERS, price=Price(7.2, "--usd-per-hour"))
    wall = summary["wall_seconds"]
    assert summary["usd"] == pytest.approx(7.2 * wall / 3600)
    assert summary["usd"]
    assert summary["usd_per_1000_images"] == pytest.approx(summary["usd"] * 1000 / 40)
    text = as_text({"run_id": "r", **summary})
    assert "USD per 1,000 images at 7.2 USD an hour (--usd-per-hour)" in text
    assert "images         50 (35 labelled)" in text
    assert "  before       10 by a run that was killed" in text
    free = as_text({"run_id": "r", **report(tally, counts, 110, workers=WORKERS, price=None)})
    assert "not known: give label --instance-type or --usd-per-hour" in free
