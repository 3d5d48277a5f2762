"""The memory of readers and preparers is bounded, whatever lies in the lake."""

import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import jpeg

# MiB. The reader needs most: pyarrow writes a row group of a gigabyte as one page, read as a whole.
MOST = {"worker": 512, "reader": 2_560, "decoder": 2_048}
FLOW = """
import json, sys
from collections import Counter
from model.resize import ResizeRule
from pipeline.stages import read
from pipeline.plan.plan import plan_shards
from pipeline.stages.prepare import Preparer
statuses = Counter()
preparer = Preparer(ResizeRule(800, 1333))
for shard in plan_shards(sys.argv[1]).shards:
    for table in read.read_shard(shard):
        for block in preparer(table):
            statuses.update(block["status"].to_pylist())

def peak(pid):  # MiB; the peak of `getrusage` would include that of the parent
    lines = open(f"/proc/{pid}/status").read().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

peaks = {"worker": peak("self"), "reader": peak(read._child._process.pid),
         "decoder": peak(preparer.child._process.pid)}
print(json.dumps({"statuses": statuses, "peaks": peaks}))
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="these tests measure memory by means of Linux"
)


def read_and_prepare(source: Path, flow: str = FLOW, **most: int) -> dict[str, Any]:
    """Read and prepare all images in a process of its own; return statuses and peaks in MiB.

    `most` are other bounds than those of MOST.
    """
    done = subprocess.run([sys.executable, "-c", flow, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert all(found["peaks"][process] < bound for process, bound in (MOST | most).items())
    return found


def png_of_zeros(width: int, height: int) -> bytes:
    """Make a black image, which compresses to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def change_size_in_header(content: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header states another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.slow
def test_decompression_bombs_are_refused_by_their_headers(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_zeros(40_000, 30_000))
    (tmp_path / "giant.jpg").write_bytes(change_size_in_header(jpeg(), 40_000, 30_000))
    (tmp_path / "largest.png").write_bytes(png_of_zeros(10_000, 10_000))
    assert read_and_prepare(tmp_path)["statuses"] == {"too_many_pixels": 2, "ok": 1}


@pytest.mark.slow
def test_scans_of_500_megapixels_in_tiles(tmp_path: Path) -> None:
    """Two of them, with 0.85 GB of views each. Decoded at once, one has 1.5 GB, or 2 in Pillow."""
    pyvips = pytest.importorskip("pyvips")
    scan = pyvips.Image.black(22_400, 22_400, bands=3)
    scan.tiffsave(str(tmp_path / "a.tif"), compression="deflate")
    (tmp_path / "b.tif").hardlink_to(tmp_path / "a.tif")
    tiled = "ResizeRule(800, 1333), tiling=Tiling(1333)"
    flow = FLOW.replace("ResizeRule(800, 1333)", tiled).replace(
        "import read\n", "import read\nfrom pipeline.stages.tiling import Tiling\n"
    )
    assert read_and_prepare(tmp_path, flow, worker=2_560)["statuses"] == {"ok": 2}


@pytest.mark.slow
def test_ten_thousand_tiny_images(tmp_path: Path) -> None:
    for index in range(10_000):
        (tmp_path / f"{index:05}.jpg").write_bytes(jpeg(index % 7))
    assert read_and_prepare(tmp_path)["statuses"] == {"ok": 10_000}


@pytest.mark.slow
def test_a_tar_of_two_gigabytes_with_a_huge_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("a.jpg", "z.jpg"):
            path = tmp_path / f"{name}.part"
            path.write_bytes(jpeg())
            archive.add(path, name)
            if name == "a.jpg":
                with (tmp_path / "huge").open("wb") as file:
                    file.truncate(2 << 30)
                archive.add(tmp_path / "huge", "huge.jpg")
    assert read_and_prepare(tmp_path / "t.tar")["statuses"] == {"ok": 2, "too_large": 1}


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_parquet_file_of_one_row_group_of_a_gigabyte(tmp_path: Path, compression: str) -> None:
    noise = np.random.default_rng(0).bytes(4 << 20)
    schema = pa.schema([("image", pa.large_binary())])
    with pq.ParquetWriter(tmp_path / "p.parquet", schema, compression=compression) as writer:
        rows = [jpeg(i) + noise for i in range(256)]
        writer.write_table(pa.table({"image": rows}, schema=schema), row_group_size=1000)
    assert pq.read_metadata(tmp_path / "p.parquet").num_row_groups == 1
    assert read_and_prepare(tmp_path / "p.parquet")["statuses"] == {"ok": 256}
