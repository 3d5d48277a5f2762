"""Processes and machines of Ray that go while a run uses them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree

import psutil
from ray.cluster_utils import Cluster

from tests.chaos.commands import ALONE, Command
from tests.chaos.harness import Lab, NotPossible
from tests.chaos.lake import write_images
from tests.chaos.lakes import calm_label
from tests.support.s3_server import free_ports

OBJECT_BYTES = 75 << 20  # of Ray's object store: as few as it takes
SPILLED_IMAGES = 120  # of half a megabyte each, when they are prepared
BALLAST = "ballast"
BLOCKS = "_staging/*/blocks/block-*"
LOOPBACK = "127.0.0.1"


def find(command: Command, named: str) -> psutil.Process | None:
    """A process below a command whose command line has this text."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(command.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if named in " ".join(process.cmdline()):
                    return process
    return None


def worker_killed(named: str, at_once: bool = False) -> Callable[[Lab], None]:
    """SIGKILL of one of Ray's workers as soon as something is staged; the same run ends.

    `at_once`: as soon as it is there, for those that have done their work by then.
    """

    def fault(lab: Lab) -> None:
        lab.place_template()
        with lab.readers(["label", "label"]):
            command = lab.start("label")
            if at_once:
                lab.until(lambda: find(command, named), command)
            else:
                lab.until(command.staged, command)
            process = find(command, named)
            if process is None:
                raise NotPossible(f"there is no {named} any more: {command.said()}")
            process.kill()
            finish_and_compare(lab, command)

    return fault


def finish_and_compare(lab: Lab, command: Command) -> None:
    began = time.monotonic()
    code = lab.finish(command)
    assert code == 0, f"{command}: exit code {code}: {command.said()}"
    lab.outcome.recovery.append(time.monotonic() - began)
    lab.settle("label")


def server_killed(lab: Lab) -> None:
    """The raylet or the control store of a run's own Ray: Ray 2.60 ends the driver with it."""
    server = lab.fault.parameter.split()[0]
    lab.place_template()
    with lab.readers(["label", "label"]):
        command = lab.start("label")
        there = lab.until(command.staged, command)
        process = find(command, f"/{server}")
        if not there or process is None:
            raise NotPossible(f"no {server} to be killed: {command.said()}")
        process.kill()
        code = lab.finish(command)
        assert code in (0, 1), f"{command}: exit code {code}: {command.said()}"
        order = ["label"] * (2 if lab.commits() else 1)
        lab.recover("label")
        lab.settle(*order)


def node_taken_away(lab: Lab) -> None:
    """A second node, whose raylet and workers are killed in mid-run."""
    lab.place_template()
    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=2)
        with lab.readers(["label", "label"]):
            command = lab.start("label", words=("--address", cluster.address))
            # Workers of a cluster have its environment, and write down no step of this command.
            there = lab.until(lambda: list(Path(lab.output).glob(BLOCKS)), command)
            cluster.remove_node(node, allow_graceful=False)
            if not there:
                raise NotPossible(f"nothing was staged: {command.said()}")
            finish_and_compare(lab, command)
    finally:
        cluster.shutdown()


def spill_disk_full(lab: Lab) -> None:
    """No room for objects that Ray would spill, and little memory for them: none are."""
    lake = lab.folder / "lake"
    write_images(lake, range(SPILLED_IMAGES))
    expected, _ = calm_label(lab, lake, how=ALONE)
    with full_disk(lab.folder / "spill") as spill, small_ray(spill) as address:
        began = time.monotonic()
        command = lab.start("label", source=str(lake), words=("--address", address))
        code = lab.finish(command)
        assert code == 0, f"{command}: exit code {code}: {command.said()}"
        lab.outcome.recovery.append(time.monotonic() - began)
        lab.compare(expected, latest=True)
        assert spill_has_nothing(spill), f"Ray spilled: {list(spill.iterdir())}"


def spill_has_nothing(spill: Path) -> bool:
    return not [file for file in spill.rglob("*") if file.is_file() and file.name != BALLAST]


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk of a megabyte without room, mounted at `folder`. NotPossible where none may be."""
    folder.mkdir(exist_ok=True)
    done = mount(folder, "size=1m")
    if done.returncode:
        raise NotPossible(f"only root can mount a disk to fill: {done.stderr}")
    try:
        with (folder / BALLAST).open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_ray(spill: Path) -> Iterator[str]:
    """Address of a Ray of two CPUs with few bytes for objects, which spills to the folder."""
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--port", str(port), "--num-cpus", "2", "--node-ip-address", LOOPBACK]
    command += ["--object-store-memory", str(OBJECT_BYTES), "--include-dashboard=false"]
    command += ["--object-spilling-directory", str(spill)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex((LOOPBACK, port)):
            assert server.poll() is None, "Ray did not start"
            assert time.monotonic() < deadline, "Ray did not answer"
            time.sleep(0.5)
        yield f"{LOOPBACK}:{port}"
    finally:  # its own farewell takes half a minute; what it leaves the campaign ends
        server.kill()
        server.wait()


def disk_full(lab: Lab) -> None:
    """OUTPUT's disk has room for some blocks more; with more room, the same command goes on."""
    name = lab.fault.command
    lab.place_template()
    output = Path(lab.output)
    kept = output.rename(lab.folder / "kept")
    output.mkdir()
    done = mount(output, "size=64m")
    if done.returncode:
        raise NotPossible(f"only root can mount a disk to fill: {done.stderr}")
    try:
        copytree(kept, output, dirs_exist_ok=True)
        disk = os.statvfs(output)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_bsize
        mount(output, f"remount,size={used + (int(lab.fault.parameter) << 12)}")
        command = lab.start(name)
        code = lab.finish(command)
        mount(output, "remount,size=64m")
        if code == 0:
            raise NotPossible("there was room")
        assert code == 1, f"{command}: exit code {code}: {command.said()}"
        lab.explains_itself(command, "the disk is full")
        order = [name] * (2 if lab.commits() else 1)
        lab.recover(name, lab.undisturbed(*order).codes[-1])
        lab.settle(*order)
    finally:
        subprocess.run(["umount", str(output)], check=True)


def mount(folder: Path, options: str) -> "subprocess.CompletedProcess[str]":
    """Mount a disk in memory at a folder, or change the one that is there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


KINDS = {
    "detector killed": worker_killed("MapBatches(Detector)"),
    "preparer killed": worker_killed("MapBatches(Preparer)", at_once=True),
    "decoding process killed": worker_killed("pipeline.stages.decode", at_once=True),
    "node taken away": node_taken_away,
    "Ray's own servers killed": server_killed,
    "full disk for spilled objects": spill_disk_full,
    "disk of OUTPUT full": disk_full,
}
