"""`compact` refuses tables that are not as they were written: its own would hide the damage."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output.catalog import committed_runs
from tests.support.damage import DAMAGES
from tests.support.nights import NIGHTS, write_nights


@pytest.mark.parametrize("table", ["images", "detections"])
@pytest.mark.parametrize("damage", ["cut", "bit 1 at 0.5", "bit 7 at 0.3"])
def test_a_damaged_table_is_named_and_nothing_is_changed(
    table: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(write_nights(tmp_path / "labels"))
    (file,) = output.glob(f"{table}/run={NIGHTS[1]}/part-*.parquet")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    before = sorted(path for path in output.rglob("*") if path.is_file())
    assert main(["compact", str(output)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file.relative_to(output)) in said
    assert sorted(path for path in output.rglob("*") if path.is_file()) == before
    file.write_bytes(whole)
    assert main(["compact", str(output)]) == 0
    assert [run["compacts"] for run in committed_runs(str(output))] == [True]
