"""A real S3 server with credentials and conditional writes (SeaweedFS) on loopback."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError
from s3fs import S3FileSystem

KEY, SECRET, REGION = "test-key", "test-secret", "us-east-1"
READER = "reader-key"  # may write nothing
ADMIN = "admin-key"  # may create buckets; a write by the other users must not create one
BUCKET = "lake"
PUBLIC = "public"  # a bucket that everybody may read, once ADMIN has created it
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Find ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run the server with an empty bucket; yield the environment that its clients need."""
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[6]}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "identities.json")
        user = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
        reader = [action for action in user if action.startswith(("Read", "List"))]
        rights = {ADMIN: ["Admin"], KEY: user, READER: reader}
        everybody = {"name": "anonymous", "actions": [f"Read:{PUBLIC}", f"List:{PUBLIC}"]}
        identities = [*(_identity(*one) for one in rights.items()), everybody]
        config.write_text(json.dumps({"identities": identities}))
        command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=20"]
        command += [
            "-filer",
            "-s3",
            f"-s3.config={config}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam.readOnly=false",
        ]
        for index, name in enumerate(names):
            command += [f"-{name}.port={ports[2 * index]}"]
            command += [f"-{name}.port.grpc={ports[2 * index + 1]}"]
        with open(Path(folder, "log"), "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_until_writable(process, environment["AWS_ENDPOINT_URL"], Path(folder, "log"))
            yield environment
        finally:
            process.kill()  # nothing must be kept, and an orderly stop takes half a minute
            process.wait()


def _identity(key: str, actions: list[str]) -> dict[str, Any]:
    credentials = [{"accessKey": key, "secretKey": SECRET}]
    return {"name": key, "credentials": credentials, "actions": actions}


def _wait_until_writable(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Wait until the server takes a write; else raise RuntimeError with the end of its log."""
    deadline = time.monotonic() + START_SECONDS
    fs = S3FileSystem(key=ADMIN, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True)
    while True:
        try:
            if not fs.exists(BUCKET):
                fs.mkdir(BUCKET)
            fs.pipe_file(f"{BUCKET}/.started", b"")
            fs.rm_file(f"{BUCKET}/.started")
            return
        except (OSError, BotoCoreError) as error:  # s3fs translates only some errors of botocore
            if process.poll() is not None or time.monotonic() > deadline:
                end = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"no S3 server: {error}\n{end}") from error
            time.sleep(0.3)
