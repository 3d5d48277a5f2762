"""The views of a connection without suppressed boxes, beside what else the views leave out."""

from pathlib import Path
from typing import Any

import pytest

from jobs.output import suppressed_boxes
from jobs.output.gone_objects import hide_gone_objects
from jobs.output.suppressed_boxes import hide_suppressed_boxes
from jobs.output.views import connect
from pipeline.stages.box_rules import BoxRules
from tests.jobs.output.test_gone_objects import FIRST, SECOND, write_gone
from tests.support.labelled import LABELS, SOURCE, Labelled, write_run

# Of each image the second box is near to the first one, of its class, and the third of another.
BOXES = [
    (1, 0.9, 0.0, 0.0, 100.0, 100.0),
    (1, 0.8, 2.0, 0.0, 102.0, 100.0),
    (2, 0.7, 0.0, 1.0, 100.0, 101.0),
    (4, 0.6, 300.0, 300.0, 320.0, 320.0),
]


def views(output: str, rules: BoxRules, scratch: Path, *asked: str) -> tuple[int, list[Any]]:
    with connect(output) as connection:
        hidden = hide_suppressed_boxes(connection, rules, str(scratch))
        hide_gone_objects(connection, output)
        return hidden, [connection.sql(sql).fetchall() for sql in asked]


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize(
    ("rules", "ranks"),
    [
        (BoxRules(nms=0.5), [0, 2, 3]),
        (BoxRules(nms_across_classes=0.5), [0, 3]),
        (BoxRules(nms=0.99), [0, 1, 2, 3]),
    ],
)
def test_all_views_leave_out_what_is_suppressed_and_what_is_gone(
    rules: BoxRules,
    ranks: list[int],
    rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suppressed_boxes, "ROWS_AT_ONCE", rows)
    output = str(tmp_path / "out")
    images = [Labelled(f"file:///lake/{name}.jpg", BOXES) for name in "abc"]
    for run, some in ((FIRST, images), (SECOND, images[1:])):
        write_run(output, some, LABELS, run, source="file:///lake")
    write_gone(output, FIRST)
    write_gone(output, SECOND, "a")
    hidden, (boxes, latest, counts) = views(
        output,
        rules,
        tmp_path,
        "SELECT detection FROM detections ORDER BY run, image_id, detection",
        "SELECT detection FROM latest ORDER BY image_id, detection",
        "SELECT DISTINCT num_detections, max_score FROM images",
    )
    assert hidden == 5 * (len(BOXES) - len(ranks))
    assert boxes == [(rank,) for rank in ranks * 4]
    assert latest == [(rank,) for rank in ranks * 2]
    assert counts == [(len(ranks), pytest.approx(0.9))]


def test_columns_stay_as_they_are(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled(f"{SOURCE}/a.jpg", BOXES)], LABELS)
    asked = [f"DESCRIBE {view}" for view in ("images", "detections", "latest_images", "latest")]
    with connect(output) as connection:
        before = [connection.sql(sql).fetchall() for sql in asked]
    assert views(output, BoxRules(nms=0.5), tmp_path, *asked) == (1, before)


def test_images_of_one_name_keep_their_boxes(tmp_path: Path) -> None:
    """Earlier versions gave one name to several rows of a Parquet file."""
    images = [Labelled("x#1", BOXES, shard="x"), Labelled("x#1", BOXES, shard="x")]
    output = write_run(tmp_path / "out", images, LABELS)
    asked = "SELECT count(*) FROM detections"
    assert views(output, BoxRules(nms=0.5), tmp_path, asked) == (0, [[(8,)]])


def test_an_output_without_boxes_has_none(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled(f"{SOURCE}/a.jpg")], LABELS)
    asked = "SELECT num_detections FROM latest_images"
    assert views(output, BoxRules(nms=0.5), tmp_path, asked) == (0, [[(0,)]])
