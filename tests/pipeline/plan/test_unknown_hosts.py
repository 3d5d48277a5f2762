"""An address of a list whose host does not exist costs its own row, not the run."""

import time
from pathlib import Path

from pipeline.plan.plan import plan_shards
from tests.support.samples import encoded, jpeg

NOWHERE = "http://no-such-host.invalid/a.jpg"


def test_a_host_that_does_not_exist_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(jpeg())
    listed = tmp_path / "list.txt"
    listed.write_text(f"{NOWHERE}\n{tmp_path / 'b.jpg'}\n")
    began = time.monotonic()
    rows = [row for shard in plan_shards(str(listed)).shards for row in encoded(shard)]
    assert {row["uri"]: row["status"] for row in rows} == {
        NOWHERE: "unreadable",
        f"file://{tmp_path}/b.jpg": "ok",
    }
    assert time.monotonic() - began < 30  # it is not waited for as for a store
