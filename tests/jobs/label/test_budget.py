"""A run that its budget ends publishes what is finished, and the next one goes on."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.accounting.budget import Budget
from jobs.cli import main
from jobs.label import unpublished_archives
from jobs.label.budget_options import EXIT_ENDED
from jobs.label.label import label
from jobs.label.metrics import RunMetrics
from jobs.label.notify.announced_run import Ending
from jobs.label.notify.notifier import Notifier
from jobs.label.outcome import EXIT_OK, EXIT_TOO_MANY_FAILURES
from jobs.output.catalog import committed_runs
from jobs.output.output_writer import OutputWriter
from jobs.report.report import as_text
from jobs.report.reports import read_report
from pipeline.plan.remaining import Staged
from pipeline.plan.shards import Shards
from pipeline.stages.tasks import stage_block
from pipeline.storage.files import open_location
from tests.chaos.compare import difference, read_tables
from tests.support import alone
from tests.support.alone import label_without_ray
from tests.support.labelling import tiny_options
from tests.support.tables import rows


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    label_without_ray(children=False, replace=monkeypatch.setattr)


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Seven files, one of them broken, two tars of five images, and a Parquet file of five."""
    folder = tmp_path / "lake"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(encoded(seed))
    (folder / "broken.jpg").write_bytes(b"no image")
    for name, first in (("a", 10), ("b", 20)):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for seed in range(first, first + 5):
                info = tarfile.TarInfo(f"{seed}.png")
                info.size = len(encoded(seed))
                tar.addfile(info, io.BytesIO(encoded(seed)))
    seeds = range(30, 35)
    table = {"id": [str(seed) for seed in seeds], "image": [encoded(seed) for seed in seeds]}
    pq.write_table(pa.table(table), folder / "c.parquet")
    return folder


IMAGES = 7 + 3 * 5


@pytest.fixture
def end_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function: from now on, budgets leave time for so many blocks of two images in each run."""
    most = 0
    taken: list[object] = []  # the meters of runs, one for each look at the time that is left

    def seconds_left(budget: Budget, *_: object) -> float:
        taken.append(budget.nodes)
        if budget.nodes is None or not budget.is_limited:  # no run has begun
            return 1000.0
        return 1000.0 if taken.count(budget.nodes) <= most else 0.0

    def end(blocks: int) -> None:
        nonlocal most
        most = blocks

    monkeypatch.setattr(Budget, "seconds_left", seconds_left)
    return end


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [2, 5])
def test_runs_that_budgets_end_leave_the_tables_of_one_run(
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    blocks: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert label(tiny_options(lake, tmp_path / "calm", weights)) == EXIT_OK
    expected = read_tables(str(tmp_path / "calm"))
    output = str(tmp_path / "out")
    end_after(blocks)
    codes = list[int]()
    for _ in range(20):
        codes.append(label(tiny_options(lake, output, weights, max_hours=1.0)))
        found = difference(read_tables(output), expected)
        assert not (found.twice or found.differing)
        if codes[-1] == EXIT_OK:
            break
    assert codes[-1] == EXIT_OK and len(codes) > 2
    # A part of which all images failed, which here is the broken one alone, says that instead.
    assert {*codes[:-1]} <= {EXIT_ENDED, EXIT_TOO_MANY_FAILURES} and EXIT_ENDED in codes
    assert not difference(read_tables(output), expected)
    assert main(["runs", output, "--verify"]) == 0
    assert not list(Path(output, "_staging").iterdir())
    capsys.readouterr()
    assert label(tiny_options(lake, output, weights)) == EXIT_OK
    assert "nothing new" in capsys.readouterr().out


class Killed(BaseException):
    """The command is killed here."""


commit = OutputWriter.commit


def before_the_commit(*_: Any) -> None:
    raise Killed


def behind_the_commit(*arguments: Any) -> None:
    commit(*arguments)
    raise Killed


def before_the_tables(run_id: str, begun: Shards, staged: Staged, writer: OutputWriter) -> None:
    unpublished_archives.stage_rest(run_id, begun, staged, writer)
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kill"),
    [
        ("jobs.label.publication.stage_rest", before_the_tables),
        ("jobs.output.output_writer.OutputWriter.commit", before_the_commit),
        ("jobs.output.output_writer.OutputWriter.commit", behind_the_commit),
    ],
)
def test_nothing_is_lost_or_done_twice_if_it_is_killed_while_it_publishes_a_part(
    name: str,
    kill: Callable[..., Any],
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm, output = tmp_path / "calm", str(tmp_path / "out")
    assert label(tiny_options(lake, calm, weights)) == EXIT_OK
    staged = list[int]()

    def stage_and_count(block: pa.Table, staging: str) -> pa.Table:
        staged.append(len(block))
        return stage_block(block, staging)

    monkeypatch.setattr(alone, "stage_block", stage_and_count)
    end_after(8)  # the loose files and an archive are labelled then, and another one in part
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(name, kill)
        label(tiny_options(lake, output, weights, max_hours=1.0))
    assert label(tiny_options(lake, output, weights)) == EXIT_OK
    assert not difference(read_tables(output), read_tables(str(calm)))
    assert sum(staged) == IMAGES  # no block is repeated
    assert main(["runs", output, "--verify"]) == 0
    assert not list(Path(output, "_staging").iterdir())


def test_an_archive_that_takes_longer_than_a_budget_is_labelled_in_several_runs(
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "out")
    given = {"format": "tar", "usd_per_hour": 2.0, "max_usd": 5.0}
    end_after(2)
    codes = [label(tiny_options(lake / "a.tar", output, weights, **given)) for _ in range(2)]
    assert codes == [EXIT_ENDED, EXIT_OK]
    printed = capsys.readouterr().err
    assert "ended by --max-usd 5: 1 object of INPUT is left; 4 images of these are la" in printed
    (run,) = committed_runs(output)
    report = read_report(output, run["run_id"])
    assert report["labelled_before"] == 4 and "ended_by" not in report


def test_an_archive_that_no_budget_suffices_for_can_be_moved_away(
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is labelled of it is published then, and what is new is labelled."""
    output = str(tmp_path / "out")
    for name in ("b.tar", "c.parquet"):
        (lake / name).unlink()

    def run() -> tuple[int, str]:
        code = label(tiny_options(lake, output, weights, max_hours=1.0))
        return code, capsys.readouterr().err

    end_after(5)
    code, said = run()
    assert code == EXIT_ENDED and "move it out of INPUT" not in said
    assert rows(Path(output), "SELECT count(*) FROM images") == [(7,)]  # the loose files
    (lake / "new.png").write_bytes(encoded(40))
    end_after(1)
    code, said = run()
    assert code == EXIT_ENDED and "4 images of these are labelled already" in said
    assert f"until file://{lake}/a.tar is labelled whole, nothing is published" in said
    assert "give more, or move it out of INPUT" in said
    (lake / "a.tar").rename(tmp_path / "a.tar")
    end_after(9)
    assert run()[0] == EXIT_OK
    found = rows(
        Path(output),
        "SELECT status, count(*) FROM images WHERE uri LIKE '%a.tar%' GROUP BY 1 ORDER BY 1",
    )
    assert found == [("ok", 4), ("unreadable", 1)]
    assert rows(Path(output), "SELECT status FROM images WHERE uri LIKE '%new.png'") == [("ok",)]


def test_a_run_that_its_budget_ends_within_an_archive_is_told_to_have_ended(
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = list[RunMetrics]()
    monkeypatch.setattr(RunMetrics, "keep", lambda metrics: kept.append(metrics))
    events = tmp_path / "events.jsonl"
    given = {"format": "tar", "max_hours": 1.0, "lineage": str(events)}
    options = tiny_options(lake / "a.tar", tmp_path / "out", weights, **given)
    notifier = Notifier(options, options.input, options.output)
    end_after(2)
    assert label(options, notifier=notifier) == EXIT_ENDED
    assert len(kept) == 1
    notifier.end(Ending(EXIT_ENDED))
    begin, end = map(json.loads, events.read_text().splitlines())
    assert (begin["eventType"], end["eventType"]) == ("START", "ABORT")
    assert end["run"]["facets"]["errorMessage"]["message"] == "ended by --max-hours 1"


@pytest.mark.slow
def test_a_run_that_ends_before_its_first_block_is_an_error(
    lake: Path,
    tmp_path: Path,
    weights: str,
    end_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "out")
    end_after(0)
    words = ["label", str(lake), output, "--model", "shapes-tiny", "--weights", weights]
    assert main([*words, "--max-hours", "2"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "detr-batch:" in line]
    assert "--max-hours 2 is spent before the first block was done: give more" in line
    assert not committed_runs(output) and not list(Path(output, "_staging").iterdir())
    assert main([*words, "--max-hours", "0.001"]) == 2
    assert main([*words, "--relabel", "--max-hours", "1"]) == 2
    assert "would drop the labels" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_of_a_part_says_what_is_left(
    lake: Path, tmp_path: Path, weights: str, end_after: Callable[[int], None]
) -> None:
    output = str(tmp_path / "out")
    end_after(8)  # the loose files and an archive are labelled then, and another one in part
    given = {"until": "2999-01-01T06:00Z", "instance_type": "m5d.2xlarge"}
    assert label(tiny_options(lake, output, weights, **given)) == EXIT_ENDED
    (run,) = committed_runs(output)
    report = read_report(output, run["run_id"])
    text = as_text(report)
    assert "ended by       --until 2999-01-01T06:00Z" in text
    assert (report["left"], report["kept"], report["labelled_before"]) == (2, 2, 0)
    published = rows(Path(output), "SELECT shard, index_in_shard FROM images ORDER BY ALL")
    assert len({shard for shard, _ in published}) == 2
    assert sorted(index for _, index in published) == sorted([*range(5), *range(7)])


@pytest.mark.slow
def test_a_bucket_is_labelled_in_several_runs(
    bucket: str, lake: Path, weights: str, end_after: Callable[[int], None]
) -> None:
    fs, path = open_location(f"{bucket}/lake", "INPUT")
    for file in lake.iterdir():
        fs.pipe_file(f"{path}/{file.name}", file.read_bytes())
    calm, output = f"{bucket}/calm", f"{bucket}/out"
    assert label(tiny_options(f"{bucket}/lake", calm, weights)) == EXIT_OK
    end_after(5)  # one archive is labelled then, and another one in part
    given = {"max_hours": 1.0}
    codes = [label(tiny_options(f"{bucket}/lake", output, weights, **given)) for _ in range(3)]
    assert codes[:2] == [EXIT_ENDED, EXIT_ENDED]
    assert label(tiny_options(f"{bucket}/lake", output, weights)) == EXIT_OK
    assert not difference(read_tables(output), read_tables(calm))
