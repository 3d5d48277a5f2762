"""A lake of small pictures, a Ray of its own, and runs over it that are disturbed on purpose."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ray.cluster_utils import Cluster
from s3fs import S3FileSystem

from jobs.output import paths
from jobs.output.views import connect
from model.checkpoint import save_weights
from model.zoo import create_model
from pipeline.storage.files import open_location
from tests.chaos.faulty_store import FaultyStore
from tests.support.s3_server import BUCKET, free_ports, s3_server

INJECTED = Path(__file__).parent / "injected"
LEASE_SECONDS = 3
PATIENCE_SECONDS = 60  # with a store that fails
RUN_SECONDS = 240  # for one run; more is a hang
IMAGES = "image_id, uri, shard, index_in_shard, status, width, height, num_detections"
BOXES = "image_id, detection, label_id, score, x_min, y_min, x_max, y_max"


@dataclass
class Outcome:
    """What a fault, injected so many times, cost."""

    fault: str
    injected: int = 0
    lost: int = 0  # images without a row
    twice: int = 0  # rows beyond the first of an image
    differing: int = 0  # images whose row or boxes are not those of an undisturbed run
    again: int = 0  # images computed again although a block with them was staged
    recovery: list[float] = field(default_factory=list)  # seconds of the runs that took it up

    def add(self, other: "Outcome") -> None:
        """Sum up."""
        for name in ("injected", "lost", "twice", "differing", "again"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.recovery += other.recovery


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk of a megabyte without room, mounted at `folder`. AssertionError where none may be."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"only root can mount a disk to fill: {done.stderr}"
    try:
        with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_ray(spill: Path) -> Iterator[str]:
    """Address of a Ray of two CPUs with 75 MiB for objects, which spills to the folder `spill`."""
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--port", str(port), "--num-cpus", "2", "--object-store-memory", str(75 << 20)]
    command += ["--object-spilling-directory", str(spill), "--include-dashboard=false"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "Ray did not start"
            assert time.monotonic() < deadline, "Ray did not answer"
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def picture(seed: int, kind: str = "PNG") -> bytes:
    """An encoded picture of 80 x 60, between noise and a photo."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def of_one_colour(colour: tuple[int, int, int]) -> bytes:
    """A picture that a detector may react to (`PIXEL_FAULTS`)."""
    file = io.BytesIO()
    Image.new("RGB", (80, 60), colour).save(file, "PNG")
    return file.getvalue()


def write_lake(folder: Path, images: int) -> None:
    """Loose files, tars and a Parquet file, a third of the images each."""
    folder.mkdir(parents=True)
    third = images // 3
    for index in range(third):
        (folder / f"{index:04}.png").write_bytes(picture(index))
    for number, start in enumerate(range(third, 2 * third, 8)):
        with tarfile.open(folder / f"{number:03}.tar", "w") as archive:
            for index in range(start, min(start + 8, 2 * third)):
                entry = tarfile.TarInfo(f"{index:04}.png")
                content = picture(index)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    rest = range(2 * third, images)
    table = pa.table({"id": [str(i) for i in rest], "image": [picture(i) for i in rest]})
    pq.write_table(table, folder / "rest.parquet", row_group_size=8)


Tables = tuple[list[dict[str, Any]], dict[str, list[tuple[Any, ...]]]]


def tables(output: str) -> Tables:
    """Rows of `images`, and the boxes of each image."""
    with connect(output) as database:
        rows = database.sql(f"SELECT {IMAGES} FROM images ORDER BY image_id").to_arrow_table()
        found = database.sql(f"SELECT {BOXES} FROM detections ORDER BY ALL").fetchall()
    boxes: dict[str, list[tuple[Any, ...]]] = {}
    for row in found:
        boxes.setdefault(row[0], []).append(row[1:])
    return rows.to_pylist(), boxes


def compare(found: Tables, expected: Tables) -> Outcome:
    """Which images are lost, there twice, or otherwise than expected."""
    rows = {row["image_id"]: row for row in found[0]}
    wanted = {row["image_id"]: row for row in expected[0]}
    same = [
        rows[name] == wanted[name] and _alike(found[1].get(name, []), expected[1].get(name, []))
        for name in rows.keys() & wanted.keys()
    ]
    return Outcome(
        "",
        lost=len(wanted.keys() - rows.keys()),
        twice=len(found[0]) - len(rows),
        differing=same.count(False) + len(rows.keys() - wanted.keys()),
    )


def _alike(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> bool:
    """Boxes equal but for what another batch rounds otherwise."""
    if [row[:2] for row in found] != [row[:2] for row in expected]:
        return False
    numbers = np.array([row[2:] for row in found]), np.array([row[2:] for row in expected])
    return bool(np.allclose(*numbers, rtol=1e-4, atol=1e-2))


class Lab:
    """One Ray cluster whose processes can be made to fail, and the runs on it."""

    def __init__(self, folder: Path, images: int):
        self.folder, self.count = folder, images
        self.lake = folder / "lake"
        write_lake(self.lake, images)
        self.weights = folder / "tiny.safetensors"
        save_weights(create_model("shapes-tiny", "random", training=True), self.weights, {})
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.environment = {
            "PYTHONPATH": str(INJECTED),
            "DETR_BATCH_FAULTS": str(self.faults),
            "DETR_BATCH_STORE_PATIENCE": str(PATIENCE_SECONDS),
        }
        self.lease = LEASE_SECONDS
        self.calls = 1  # of a detector at once; those on GPUs take two
        self.outputs = 0
        self.calm_steps = 0  # of a run that nothing disturbed
        self.clear()

    @contextmanager
    def cluster(self) -> Iterator["Lab"]:
        """Start Ray, a head of two CPUs, and an S3 server behind a proxy that can fail."""
        before = dict(os.environ)
        with s3_server() as credentials:
            self.store = FaultyStore(credentials["AWS_ENDPOINT_URL"])
            with self.store.running():
                self.environment |= {**credentials, "AWS_ENDPOINT_URL": self.store.url}
                os.environ.update(self.environment)
                S3FileSystem.clear_instance_cache()  # of clients of another endpoint
                self.ray = Cluster(
                    initialize_head=True,
                    head_node_args={"num_cpus": 2, "include_dashboard": False},
                )
                try:
                    yield self
                finally:
                    self.ray.shutdown()
                    S3FileSystem.clear_instance_cache()
                    os.environ.clear()
                    os.environ.update(before)

    def clear(self) -> None:
        """No kill is planned, and no step was taken."""
        for name in ("kill_at", "driver"):
            (self.faults / name).unlink(missing_ok=True)
        for name in ("steps", "staged"):
            (self.faults / name).write_text("")

    def new_output(self) -> str:
        self.outputs += 1
        return str(self.folder / f"out-{self.outputs:03}")

    def lake_in_store(self) -> str:
        """The lake, copied to the store when it is first asked for."""
        url = f"s3://{BUCKET}/lake"
        fs, path = open_location(url, "INPUT")
        if not fs.exists(path):
            for file in self.lake.iterdir():
                fs.put_file(str(file), f"{path}/{file.name}")
        return url

    def start(
        self,
        source: Path | str,
        output: str,
        *options: str,
        own_ray: bool = False,
        address: str = "",
    ) -> subprocess.Popen[str]:
        """`detr-batch label`, which must not be waited for with its output unread for long.

        `own_ray`: on a Ray that it starts itself, not on the lab's; `address`: on another.
        """
        command = [sys.executable, "-m", "jobs.cli", "label", str(source), output]
        command += ["--model", "shapes-tiny", "--weights", str(self.weights)]
        command += ["--score-threshold", "0.02", "--precision", "fp32", "--batch-size", "2"]
        command += [] if own_ray else ["--address", address or self.ray.address]
        command += ["--device", "cpu", *options]
        calls = {"DETR_BATCH_CALLS": str(self.calls)} if self.calls > 1 else {}
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "DETR_BATCH_LEASE_SECONDS": str(self.lease), **calls},
        )
        (self.faults / "driver").write_text(str(process.pid))
        return process

    def finish(self, process: subprocess.Popen[str]) -> str:
        """What a run said that must end well."""
        _, said = process.communicate(timeout=RUN_SECONDS)
        if process.returncode not in (0, 3):
            raise AssertionError(f"exit code {process.returncode}: {said}")
        return said

    def label(self, source: Path | str, output: str, *options: str) -> float:
        """Run to the end; seconds that it took, the wait for a dead holder's lease aside."""
        self.wait_for_lease(output)
        began = time.monotonic()
        self.finish(self.start(source, output, *options))
        return time.monotonic() - began

    def wait_for_lease(self, output: str) -> None:
        """Until the lease of a run that was killed has ended."""
        fs, path = open_location(f"{output}/{paths.LOCK}", "OUTPUT")
        if fs.exists(path):
            ends = json.loads(fs.cat_file(path) or "{}").get("expires_at", time.time())
            time.sleep(max(0.0, ends - time.time()) + 0.1)

    def steps(self) -> list[str]:
        """Changes of outputs since `clear`, two a change: before and after."""
        return (self.faults / "steps").read_text().splitlines()

    def computed_again(self) -> int:
        """Images in more than one of the blocks that were staged since `clear`."""
        places = [json.loads(line) for line in (self.faults / "staged").read_text().splitlines()]
        every = [tuple(place) for block in places for place in block]
        return len(every) - len(set(every))

    def until(self, happened: Callable[[], object], process: subprocess.Popen[str]) -> bool:
        """Wait for it; False where the run ended before."""
        deadline = time.monotonic() + RUN_SECONDS
        while not happened():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def staged(self) -> bool:
        """Whether a block was staged since `clear`."""
        return bool((self.faults / "staged").read_text())

    def processes(self, named: str) -> list[psutil.Process]:
        """This machine's processes of this lab whose command line holds `named`."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("DETR_BATCH_FAULTS") == str(self.faults)
                if ours and named in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self, named: str) -> bool:
        """SIGKILL one of them; False where there is none."""
        for process in self.processes(named):
            try:
                process.send_signal(signal.SIGKILL)
                return True
            except psutil.NoSuchProcess:
                continue
        return False
