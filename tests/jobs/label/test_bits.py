"""The same photos get the same bits as loose files, in archives, in part, at once and resumed."""

import hashlib
import random
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label.label import label
from jobs.output import paths
from tests.jobs.label.test_label import kill_before_publishing
from tests.support.labelling import tiny_options
from tests.support.samples import write_tar

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def bits(output: Path) -> dict[str, str]:
    """A digest of all boxes of each photo, which is called by the last part of its name."""
    with closing(duckdb.connect()) as connection:
        rows = connection.execute(
            f"""
        SELECT regexp_extract(image_id, '[^/#]+$'), list({{
            'label': label_id, 'score': score, 'x0': x_min, 'y0': y_min, 'x1': x_max, 'y1': y_max
        }} ORDER BY detection)
        FROM read_parquet('{output}/detections/*/*.parquet', hive_partitioning = false) GROUP BY 1
        """
        ).fetchall()
    return {
        name.removesuffix(".jpg"): hashlib.sha256(repr(boxes).encode()).hexdigest()
        for name, boxes in rows
    }


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_photos_have_the_same_bits_wherever_they_stand(
    testdata: Path, tmp_path: Path, weights: str, precision: str
) -> None:
    photos = testdata / "coco" / "images"
    files = {path.stem: path.read_bytes() for path in sorted(photos.rglob("*.jpg"))}
    output = iter(tmp_path / f"out-{number}" for number in range(9))

    def labelled(source: Path, **options: object) -> dict[str, str]:
        folder = next(output)
        assert label(tiny_options(source, folder, weights, precision=precision, **options)) == 0
        return bits(folder)

    expected = labelled(photos)
    assert len(expected) == len(files) >= 50

    names = random.Random(0).sample(list(files), len(files))
    write_tar(tmp_path / "one.tar", {f"{name}.jpg": files[name] for name in names})
    assert labelled(tmp_path / "one.tar") == expected

    halves = tmp_path / "halves"
    halves.mkdir()
    for number in range(2):
        table = pa.table(
            {"id": names[number::2], "image": [files[name] for name in names[number::2]]}
        )
        pq.write_table(table, halves / f"{number}.parquet", row_group_size=7)
    assert labelled(halves, batch_size=3) == expected

    some = labelled(photos, limit=9)
    assert len(some) == 9 and some.items() <= expected.items()

    killed = next(output)
    kill_before_publishing(source=photos, output=killed, weights=weights, precision=precision)
    (plan,) = killed.glob("_staging/*/plan.parquet")
    blocks = sorted((plan.parent / "blocks").iterdir())
    for block in blocks[::2]:  # their images are computed again, in other company
        block.unlink()
    (killed / paths.LOCK).unlink(missing_ok=True)
    assert label(tiny_options(photos, killed, weights, precision=precision)) == 0
    assert bits(killed) == expected
