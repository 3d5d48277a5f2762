"""An address of a list that is bad in itself costs its own row, not the run."""

import ssl
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.plan.plan import plan_shards
from pipeline.storage.errors import StorageUnavailable
from tests.support.samples import encoded, jpeg
from tests.support.web import QuietHandler, served


class Misleading(QuietHandler):
    """Redirects to a local file, or to the same address; all other objects are errors."""

    def do_HEAD(self) -> None:
        targets = {"/file.jpg": "file:///etc/passwd", "/loop.jpg": "/loop.jpg"}
        target = targets.get(self.path)
        self.send_response(302 if target else 500)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=lake"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(folder / "certificate"), "-keyout", str(folder / "key")]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return context


def test_bad_addresses_cost_a_row_each(self_signed: ssl.SSLContext, tmp_path: Path) -> None:
    """A host that does not exist, has no TLS or a certificate of its own, or leads elsewhere."""
    (tmp_path / "good.jpg").write_bytes(jpeg())
    with served(Misleading) as plain, served(Misleading, self_signed) as untrusted:
        bad = [
            "http://no-such-host.invalid/a.jpg",
            f"{plain.replace('http', 'https')}/a.jpg",
            f"{untrusted}/a.jpg",
            f"{plain}/file.jpg",
            f"{plain}/loop.jpg",
        ]
        listed = tmp_path / "list.txt"
        listed.write_text("\n".join([*bad, "good.jpg"]))
        began = time.monotonic()
        rows = [row for shard in plan_shards(str(listed)).shards for row in encoded(shard)]
        seconds = time.monotonic() - began
    good = f"file://{tmp_path}/good.jpg"
    assert {row["uri"]: row["status"] for row in rows} == {
        **dict.fromkeys(bad, "unreadable"),
        good: "ok",
    }
    errors = {row["uri"]: row["error"] for row in rows}
    assert all(address in errors[address] for address in bad)
    assert "does not exist" not in errors[bad[2]] and "ertificate" in errors[bad[2]]
    assert seconds < 30  # they are not waited for as for a store


def test_an_object_that_always_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store may be in trouble, so the run ends. The line does not blame the list."""
    monkeypatch.setattr("pipeline.storage.retries.PATIENCE", 1.0)
    with served(Misleading) as base:
        address = f"{base}/broken.jpg"
        (tmp_path / "list.txt").write_text(address)
        with pytest.raises(StorageUnavailable, match=f"{address} cannot be reached.*500"):
            plan_shards(str(tmp_path / "list.txt"))
