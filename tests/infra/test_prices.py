"""The price table is complete, and `detr-batch prices` prints it."""

from collections import Counter
from datetime import date
from importlib.resources import files

import pytest
import yaml

from jobs.accounting.prices import machines
from jobs.cli import main


def test_every_entry_of_the_table_is_whole() -> None:
    assert len(machines()) >= 5
    for entry in machines().values():
        assert 0 < entry.spot < entry.on_demand
        assert date.fromisoformat(entry.read_on) <= date.today()
        assert entry.devices
        assert entry.source
        assert entry.region


def test_no_machine_is_priced_twice() -> None:
    table = yaml.safe_load((files("infra") / "prices.yaml").read_text(encoding="utf-8"))
    names = Counter(name for reading in table for name in reading["machines"])
    assert names.most_common(1)[0][1] == 1


def test_prices_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in machines())
    assert "skypilot-catalog" in printed
