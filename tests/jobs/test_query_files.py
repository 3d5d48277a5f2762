"""Where the SQL of `query` comes from, what it may touch, and the files that answers go into."""

import csv
import errno
import gzip
import io
import json
import os
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.cli import main
from jobs.output.read_only import ReadOnlyFiles
from jobs.output.views import connect
from pipeline.storage.files import join, open_location
from tests.support.labelled import LABELS, Labelled, write_run

BOXES = [(1, 0.9, 0.0, 1.0, 20.0, 30.0), (2, 0.4, 5.0, 5.0, 60.0, 70.0)]
ROWS = "SELECT label, score FROM latest ORDER BY label"


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(tmp_path / "labels", [Labelled("file:///a.jpg", BOXES)], LABELS)


WRITES = [
    "WITH x AS (COPY latest TO '{file}') SELECT 1",
    "WITH x AS MATERIALIZED (COPY latest TO '{file}') FROM x",
    "SELECT (WITH x AS (COPY latest TO '{file}') SELECT 1)",
    "DESCRIBE WITH x AS (COPY latest TO '{file}') SELECT 1",
    "EXPLAIN ANALYZE WITH x AS (COPY latest TO '{file}') SELECT 1",
    "WITH x AS (COPY latest TO '{file}') PIVOT latest ON label USING count(*)",
    "FROM query('WITH x AS (COPY latest TO ''{file}'') SELECT 1')",
    "COPY latest TO '{file}' (USE_TMP_FILE false)",
]


@pytest.mark.parametrize("sql", WRITES)
def test_a_write_within_a_query_is_refused(sql: str, output: str, tmp_path: Path) -> None:
    part = next(Path(output).glob("detections/run=*/part-*.parquet"))
    for file in (part, tmp_path / "new.parquet"):
        before = part.read_bytes()
        assert main(["query", output, sql.replace("{file}", str(file))]) == 2
        assert part.read_bytes() == before
    assert not (tmp_path / "new.parquet").exists()


@pytest.mark.parametrize("sql", WRITES)
def test_a_write_into_a_bucket_is_refused(sql: str, bucket: str) -> None:
    output = write_run(join(bucket, "labels"), [Labelled("file:///a.jpg", BOXES)], LABELS)
    fs, path = open_location(bucket, "bucket")
    before = {name: fs.cat_file(name) for name in fs.find(path)}
    parts = [name for name in before if "detections/" in name and name.endswith(".parquet")]
    for file in (join(bucket, "new.csv"), f"s3://{parts[0]}"):
        assert main(["query", output, sql.replace("{file}", file)]) == 2
    assert {name: fs.cat_file(name) for name in fs.find(path)} == before


def test_duckdb_itself_cannot_write_to_the_store_of_an_output(bucket: str) -> None:
    output = write_run(join(bucket, "labels"), [Labelled("file:///a.jpg", BOXES)], LABELS)
    with connect(output) as connection, pytest.raises(duckdb.Error, match="only read"):
        connection.execute(f"COPY latest TO '{join(bucket, 'new.csv')}'")


def test_files_of_a_read_only_file_system_stay() -> None:
    memory = MemoryFileSystem()
    memory.pipe_file("/a", b"1")
    files = ReadOnlyFiles(memory)
    assert files.open("/a").read() == b"1"
    with pytest.raises(PermissionError):
        files.open("/b", "wb")
    for change in (lambda: files.rm("/a"), lambda: files.mv("/a", "/b")):
        with pytest.raises(NotImplementedError):
            change()
    assert memory.cat_file("/a") == b"1"


@pytest.mark.parametrize("name", ["lates", "sql", "connection", "output", "relation"])
def test_a_misspelt_table_is_no_variable_of_the_program(
    name: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", output, f"FROM {name}"]) == 2
    assert f"Table with name {name} does not exist" in capsys.readouterr().err


def test_no_extension_is_installed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    for sql in ("FROM 'book.xlsx'", "SELECT st_point(1, 2)", "FROM sqlite_scan('a.db', 't')"):
        assert main(["query", output, sql]) == 2
        assert "download" not in capsys.readouterr().err


def test_users_files_may_lie_in_a_bucket_where_output_is_local(
    output: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = join(bucket, "mine.csv")
    fs, path = open_location(file, "file")
    fs.pipe_file(path, b"label,price\ncircle,3\n")
    sql = f"SELECT price FROM latest JOIN '{file}' USING (label)"
    assert main(["query", output, sql, "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["price", "3"]
    assert main(["query", output, sql.replace("mine", "none")]) == 2
    assert "none.csv" in capsys.readouterr().err


def rows_of(file: Path) -> list[tuple[str, float]]:
    """Read an answer with a reader that is not DuckDB's."""
    if file.name.endswith(".parquet") or file.suffix == ".pq":
        return [(row["label"], row["score"]) for row in pq.read_table(file).to_pylist()]
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    kind = file.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "json":
        found = json.loads(text)
    elif kind in ("jsonl", "ndjson"):
        found = [json.loads(line) for line in text.splitlines()]
    else:
        found = list(csv.DictReader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ","))
    return [(row["label"], float(row["score"])) for row in found]


NAMES = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.ndjson", "a.parquet", "a.pq", "a.CSV"]


@pytest.mark.parametrize("name", [*NAMES, "a.csv.gz", "a.tsv.gz", "a.json.gz", "a.jsonl.gz"])
def test_the_suffix_chooses_the_format(name: str, output: str, tmp_path: Path) -> None:
    file = tmp_path / name
    assert main(["query", output, "--out", str(file), ROWS]) == 0  # options may come before SQL
    read = rows_of(file)
    assert [label for label, _ in read] == ["circle", "tea cup"]
    assert [score for _, score in read] == pytest.approx([0.9, 0.4])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "labels"])


@pytest.mark.parametrize("name", ["a", "a.gz", "a.xls", "a.parquet.gz", "csv"])
def test_other_suffixes_are_refused(name: str, output: str, tmp_path: Path) -> None:
    assert main(["query", output, ROWS, "--out", str(tmp_path / name)]) == 2
    assert not (tmp_path / name).exists()


def test_a_format_goes_before_the_suffix(output: str, tmp_path: Path) -> None:
    assert main(["query", output, ROWS, "--format", "json", "--out", str(tmp_path / "a.txt")]) == 0
    assert len(json.loads((tmp_path / "a.txt").read_text())) == 2


def test_a_link_to_a_file_stays_a_link(output: str, tmp_path: Path) -> None:
    link, file = tmp_path / "link.csv", tmp_path / "file.csv"
    file.write_text("old")
    link.symlink_to(file)
    assert main(["query", output, ROWS, "--out", str(link)]) == 2
    assert main(["query", output, ROWS, "--out", str(link), "--overwrite"]) == 0
    assert link.is_symlink() and len(rows_of(file)) == 2


def test_a_device_is_not_replaced(output: str) -> None:
    arguments = ["--format", "csv", "--out", "/dev/null", "--overwrite"]
    assert main(["query", output, ROWS, *arguments]) == 2
    assert Path("/dev/null").is_char_device()


def test_json_is_valid_whatever_type_a_number_is_in(output: str, tmp_path: Path) -> None:
    sql = """SELECT MAP {'k': 'nan'::DOUBLE} AS map, union_value(n := 'inf'::DOUBLE) AS one,
        to_json(['-inf'::DOUBLE]) AS json, 'nan'::DOUBLE::VARIANT AS variant,
        'say "NaN", -Infinity \\' AS text, 1.10::DECIMAL(38, 10) AS exact, 'NaN' AS "NaN" """
    for name in ("a.json", "a.jsonl"):
        assert main(["query", output, sql, "--out", str(tmp_path / name)]) == 0
        text = (tmp_path / name).read_text()
        assert "1.1000000000" in text
        found = json.loads(text, parse_constant=pytest.fail)
        row = found[0] if name == "a.json" else found
        assert row["map"] == {"k": None} and row["one"] == {"n": None} and row["json"] == [None]
        assert row["variant"] is None and row["NaN"] == "NaN"
        assert row["text"] == 'say "NaN", -Infinity \\'


def test_sql_comes_from_a_file_or_from_stdin(
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "count.sql"
    file.write_text("-- é\nSELECT count(*) AS boxes FROM latest;\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT 2 AS boxes"))
    for given in (f"@{file}", "-"):
        assert main(["query", output, "--format", "csv", given]) == 0
        assert capsys.readouterr().out.split() == ["boxes", "2"]
    assert main(["query", output, "@none.sql"]) == 2
    assert "none.sql" in capsys.readouterr().err
    assert main(["query", output, "--format", "csv", "-- a comment\nSELECT 2 AS boxes"]) == 0


def test_an_unknown_option_is_still_refused(output: str) -> None:
    with pytest.raises(SystemExit):
        main(["query", output, "--bogus", "SELECT 1"])


def test_a_full_disk_names_the_file_of_the_user(
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    file = tmp_path / "answer.csv"
    assert main(["query", output, "SELECT 1", "--out", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"detr-batch: --out {file}: the disk is full: make room on it, then run")
