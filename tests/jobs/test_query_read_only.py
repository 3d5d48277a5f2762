"""`query` reads and nothing else, whatever SQL it gets; its answers go where the user says."""

import json
import math
from pathlib import Path

import duckdb
import pytest

from jobs.cli import main
from pipeline.storage.files import join, open_location
from tests.support.labelled import Labelled, write_run

BOXES = [(1, 0.9, 0.0, 1.0, 20.0, 30.0), (2, 0.4, 5.0, 5.0, 60.0, 70.0)]
LABELS = ("", "circle", "star")
COUNT = "SELECT count(*) AS boxes FROM latest"


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(tmp_path / "labels", [Labelled("file:///a.jpg", BOXES)], LABELS)


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree_of(sql: str) -> str:
    """The tree of a statement as DuckDB writes it, as a text within SQL."""
    ask = "SELECT json_serialize_sql($sql::VARCHAR)"
    (row,) = duckdb.connect().execute(ask, {"sql": sql}).fetchall()
    return str(row[0]).replace("'", "''")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY latest TO '{file}'",
        "COPY latest TO '{file}'; SELECT 1",
        "SELECT 1; COPY latest TO '{file}'",
        "COPY (PIVOT latest ON label USING count(*)) TO '{file}'",
        "EXPLAIN ANALYZE COPY latest TO '{file}'",
        "EXPLAIN /* */ ANALYZE -- x\n COPY/**/latest TO '{file}'",
        "CREATE TABLE t AS PIVOT latest ON label USING count(*)",
        "ATTACH '{file}' AS other",
        "EXPORT DATABASE '{file}'",
        "DROP VIEW latest",
        "PREPARE p AS COPY latest TO '{file}'",
        "INSTALL spatial",
        "SET threads = 1",
        "CALL enable_logging(storage = 'file', storage_path = '{file}')",
        "FROM enable_logging(storage = 'file', storage_path = '{file}')",
        "PRAGMA enable_logging",
        "FROM json_execute_serialized_sql('{tree}')",
        "FROM latest WHERE 1 = (SELECT 1 FROM main.\"json_execute_serialized_sql\"('{tree}'))",
        "PIVOT (FROM json_execute_serialized_sql /* */ ('{tree}')) ON x USING count(*)",
        "EXPLAIN ANALYZE FROM \"json_execute_serialized_sql\"('{tree}')",
        "PRAGMA json_execute_serialized_sql('{tree}')",
        "FROM query('FROM json_execute_' || 'serialized_sql(''x'')')",
        "CHECKPOINT",
        ";",
    ],
)
def test_nothing_but_reading_passes(
    sql: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = next(Path(output).glob("detections/run=*/part-*.parquet"))
    for file in (table, tmp_path / "new"):
        before = content_of(tmp_path)
        writing = f"WITH x AS (COPY (SELECT 1) TO '{file}') SELECT * FROM x"
        whole = sql.replace("{tree}", tree_of(writing)).replace("{file}", str(file))
        assert main(["query", output, whole]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") <= 2
        assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    "sql",
    [
        "FROM latest",
        "WITH boxes AS (FROM latest) SELECT count(*) FROM boxes",
        "PIVOT latest ON label USING count(*)",
        "SELECT * FROM (PIVOT latest ON label USING count(*))",
        "UNPIVOT (SELECT x_min, y_min FROM latest) ON x_min, y_min",
        "DESCRIBE latest",
        "SUMMARIZE latest",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE FROM latest",
        "SELECT 'COPY', label AS \"copy\" FROM latest -- DROP",
        "VALUES (1)",
    ],
)
@pytest.mark.parametrize("form", ["table", "json"])
def test_all_that_reads_has_an_answer(
    sql: str, form: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", output, sql, "--format", form]) == 0
    assert capsys.readouterr().out


def test_files_that_the_user_names_can_be_joined(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("label,price\ncircle,3\n")
    sql = f"SELECT price FROM latest JOIN '{file}' USING (label)"
    assert main(["query", output, sql, "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["price", "3"]
    file.unlink()
    assert main(["query", output, sql]) == 2
    assert "mine.csv" in capsys.readouterr().err


def test_json_has_no_number_that_json_does_not_have(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = """SELECT 'nan'::DOUBLE AS "a b", [1.5, 'inf'::DOUBLE] AS list, NULL::DOUBLE[] AS none,
        {'x': '-inf'::FLOAT, 'y': [{'z': 'nan'::FLOAT}]} AS nested,
        ['nan'::FLOAT, 1]::FLOAT[2] AS two"""
    assert main(["query", output, sql, "--format", "json"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    (row,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert row == {
        "a b": None,
        "list": [1.5, None],
        "none": None,
        "nested": {"x": None, "y": [{"z": None}]},
        "two": [None, 1.0],
    }
    assert main(["query", output, "SELECT 'nan'::DOUBLE AS x", "--format", "csv"]) == 0
    assert math.isnan(float(capsys.readouterr().out.split()[1]))


def test_a_file_is_overwritten_only_if_asked(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.csv"
    file.write_text("precious")
    assert main(["query", output, COUNT, "--out", str(file)]) == 2
    assert "exists: give another, or pass --overwrite" in capsys.readouterr().err
    assert file.read_text() == "precious"
    assert main(["query", output, "SELECT nothing", "--out", str(file), "--overwrite"]) == 2
    assert file.read_text() == "precious"
    assert main(["query", output, COUNT, "--out", str(file), "--overwrite"]) == 0
    assert file.read_text().split() == ["boxes", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.csv", "labels"]


def test_an_answer_may_go_into_a_bucket(output: str, bucket: str) -> None:
    file = join(bucket, "answer.parquet")
    assert main(["query", output, COUNT, "--out", file]) == 0
    assert main(["query", output, COUNT, "--out", file]) == 2
    fs, path = open_location(file, "file")
    with fs.open(path, "rb") as content:
        local = Path(output) / "copy.parquet"
        local.write_bytes(content.read())
    assert duckdb.execute(f"FROM '{local}'").fetchall() == [(2,)]


def test_mistakes_with_the_file_are_said(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, said in (
        (tmp_path / "absent" / "a.csv", "its folder does not exist"),
        (tmp_path / "a.txt", "must end in"),
        (Path(output) / "images" / "a.csv", "lies among the tables"),
    ):
        assert main(["query", output, COUNT, "--out", str(file)]) == 2
        assert said in capsys.readouterr().err
