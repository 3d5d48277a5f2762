"""`detr-batch submit` to a job server behind TLS, whose certificate a private authority signed."""

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from urllib.parse import urlsplit

import pytest

from jobs.cli import main
from jobs.submit import job_server
from pipeline.storage.files import InputError
from tests.jobs.submit.test_job_server import LOG, Server, follow_job, running

VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signed itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    found = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=job server", "-out", str(found[0])]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(found[1])]
    subprocess.run(command, check=True, capture_output=True)
    return found


@contextmanager
def behind_tls(target: str, certificate: tuple[Path, Path]) -> Iterator[str]:
    """The URL of a proxy that speaks TLS, as an ingress does, and passes all on to `target`."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # the server's first log breaks off
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(target)
        answers, requests = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, requests), copy(answers, writer))

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.parametrize("variable", VARIABLES)
def test_requests_and_logs_trust_the_same_authority(
    variable: str,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray's client has a library for each, and each reads a variable of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(certificate[0]))
    monkeypatch.setattr(job_server, "PATIENCE", 5.0)
    with running(Server()) as plain, behind_tls(plain, certificate) as address:
        assert follow_job(job_server.connect(address)) == 3
    assert capsys.readouterr().out == LOG


def test_a_certificate_of_nobody_is_refused(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    refused = pytest.raises(InputError, match=r"certificate is not trusted.*REQUESTS_CA_BUNDLE")
    with running(Server()) as plain, behind_tls(plain, certificate) as address, refused:
        job_server.connect(address)


def test_a_missing_file_of_authorities_is_one_clear_line(
    tmp_path: Path,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with running(Server()) as plain, behind_tls(plain, certificate) as address:
        assert main(["submit", "s3://b/in", "s3://b/out", "--address", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "ca.pem") in line
