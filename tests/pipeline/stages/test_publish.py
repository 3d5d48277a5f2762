"""Published tables are complete and sorted, and hold each image once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.output.catalog import committed_runs
from pipeline.schema import DETECTIONS, IMAGES
from pipeline.stages.publish import (
    PublishTarget,
    ReconcileError,
    group_into_parts,
    publish_part,
    reconcile,
)
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from tests.support.blocks import block, complete_shards
from tests.support.committed import commit_run, make_target


def make_publish_target(folder: Path) -> PublishTarget:
    return make_target(folder, "run", ("", "circle"), str(folder / "_staging"))


def test_missing_images_are_not_published(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    stage(block("a", [0, 1]), staging)
    stage(block("a", [3], size=4), staging)
    with pytest.raises(ReconcileError, match="a: 3 of 4"):
        reconcile(["a"], read_staging(staging))
    with pytest.raises(ReconcileError, match="b: 0 of an unknown number"):
        reconcile(["b"], read_staging(staging))


def test_published_rows_are_sorted_and_unique(tmp_path: Path) -> None:
    target = make_publish_target(tmp_path)
    for indices, size in (([2, 3], 4), ([0, 1], None), ([1, 2], None)):
        stage(block("a", indices, size, boxes=2), target.staging)
    stage(block("b", [0], 1, boxes=0), target.staging)
    result = read_staging(target.staging)
    reconcile(["a", "b"], result)
    files = [f for part in group_into_parts(["b", "a"], result) for f in publish_part(part, target)]
    assert committed_runs(str(tmp_path)) == []
    commit_run(target, "s3://lake/photos", files, {"ok": 5})
    (manifest,) = committed_runs(str(tmp_path))
    assert manifest["input"] == "s3://lake/photos"
    tables = {f["path"].split("/")[0]: pq.read_table(tmp_path / f["path"], partitioning=None)
              for f in manifest["files"]}  # fmt: skip
    assert tables["images"].schema.equals(IMAGES)
    assert tables["detections"].schema.equals(DETECTIONS)
    rows_of_images = (
        tables["images"].select(["shard", "index_in_shard", "num_detections"]).to_pylist()
    )
    assert [tuple(row.values()) for row in rows_of_images] == [
        ("a", 0, 2), ("a", 1, 2), ("a", 2, 2), ("a", 3, 2), ("b", 0, 0),
    ]  # fmt: skip
    assert sorted(tables["detections"]["detection"].to_pylist()) == [0] * 4 + [1] * 4
    scores = tables["detections"]["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)  # all boxes have the same label
    assert set(tables["detections"]["label"].to_pylist()) == {"circle"}


def test_images_in_several_staged_files_count_once(tmp_path: Path) -> None:
    """Blocks overlap where a repeated task cuts its images into other blocks than before."""
    target = make_publish_target(tmp_path)
    random = np.random.default_rng(0)
    for _ in range(12):
        chosen = sorted(random.choice(20, 6, replace=False).tolist())
        rows = block("a", chosen, 20 if chosen[-1] == 19 else None)
        status = pa.array(random.choice(["ok", "truncated", "undecodable"], 6))
        stage(rows.set_column(rows.column_names.index("status"), "status", status), target.staging)
    stage(block("a", list(range(20)), 20), target.staging)
    stage(block("b", [0, 1, 3], 4), target.staging)
    result = read_staging(target.staging)
    assert complete_shards(result) == {"a"}
    assert result.images == 23
    (b,) = result.positions_of(pa.array(["b"]))
    assert result.finished_spans(b) == [(0, 2), (3, 4)]
    stage(block("b", [2]), target.staging)
    result = read_staging(target.staging)
    reconcile(["a", "b"], result)
    (part,) = group_into_parts(["a", "b"], result)
    images = pq.read_table(tmp_path / publish_part(part, target)[0].path, partitioning=None)
    counts = Counter(images["status"].to_pylist())
    assert counts.total() == 24
    assert result.count_by_status() == dict(counts)


def test_a_part_holds_so_many_images_and_boxes_at_most(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    sizes = {"a": (2, 30), "b": (2, 1), "c": (1, 200), "d": (5, 0), "e": (1, 0)}
    for shard, (images, boxes) in sizes.items():
        stage(block(shard, list(range(images)), images, boxes), staging)
    result = read_staging(staging)
    assert result.boxes.tolist() == [60, 2, 200, 0, 0]
    parts = group_into_parts("edcba", result, images_per_file=5, boxes_per_file=61)
    assert [part.shards for part in parts] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    parts = group_into_parts("edcba", result, images_per_file=6, boxes_per_file=62)
    assert [part.shards for part in parts] == [("a", "b"), ("c",), ("d", "e")]
    stage(block("a", [0], boxes=10), staging)  # a task reads repeats too
    assert read_staging(staging).boxes[0] == 70


def test_a_run_without_one_box_has_tables_of_the_same_types(tmp_path: Path) -> None:
    target = make_publish_target(tmp_path)
    stage(block("a", [0, 1], 2, boxes=0), target.staging)
    (part,) = group_into_parts(["a"], read_staging(target.staging))
    files = publish_part(part, target)
    detections = pq.read_table(tmp_path / files[1].path, partitioning=None)
    assert detections.schema.equals(DETECTIONS)
    assert len(detections) == 0


def test_a_replaced_run_and_its_files_are_gone(tmp_path: Path) -> None:
    targets = [make_target(tmp_path, run_id, ("", "c"), str(tmp_path / "s")) for run_id in "12"]
    for target in targets:
        stage(block("a", [0], 1), target.staging)
        (part,) = group_into_parts(["a"], read_staging(target.staging))
        replaced = [] if target.run_id == "1" else ["1"]
        commit_run(target, "in", publish_part(part, target), {"ok": 1}, replaced)
    assert [run["run_id"] for run in committed_runs(str(tmp_path))] == ["2"]
    assert [p.parent.name for p in sorted(tmp_path.glob("images/*/*"))] == ["run=2"]
